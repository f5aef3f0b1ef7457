"""Records of containers: claimed once, replaced when stale, swept up, and never believed when torn."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hooks import host_state
from shim import state
from shim.cold.network import net_agents, net_down
from shim.errors import Refused
from shim.verbs import link

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: records must be root's")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "DIRECTORY", str(tmp_path / "agentshim"))
    return tmp_path / "agentshim"


@pytest.fixture
def delegate(tmp_path: Path) -> Path:
    """Where the delegate keeps its containers."""
    (tmp_path / "runc").mkdir()
    return tmp_path / "runc"


def claim(root: Path, name: str) -> None:
    state.claim(str(root), name, {"bundle": "/b"}, b"{}")


def test_a_claim_is_read_back(delegate: Path) -> None:
    claim(delegate, "a")
    record = state.load(str(delegate), "a")
    assert record is not None
    assert record["bundle"] == "/b"
    assert state.asked(str(delegate), "a") == b"{}"


def test_the_same_id_below_another_root_is_another(delegate: Path, tmp_path: Path) -> None:
    claim(delegate, "a")
    assert state.load(str(tmp_path / "crun"), "a") is None


def test_a_container_that_exists_is_in_use(delegate: Path) -> None:
    (delegate / "a").mkdir()
    with pytest.raises(Refused, match="already exists"):
        claim(delegate, "a")


def test_one_that_another_process_creates_is_in_use(delegate: Path) -> None:
    code = "import sys; from shim import state; state.DIRECTORY = sys.argv[1]; "
    code += "state.claim(sys.argv[2], 'a', {}, b'{}'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, state.DIRECTORY, str(delegate)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(Refused, match="already exists"):
            claim(delegate, "a")
        other.kill()
    claim(delegate, "a")


def test_only_one_of_many_claims_passes(delegate: Path) -> None:
    code = "import sys; from shim import state; from shim.errors import Refused; state.DIRECTORY = sys.argv[1]\n"
    code += "try:\n state.claim(sys.argv[2], 'a', {}, b'{}')\nexcept Refused:\n print('refused', flush=True)\n"
    code += "else:\n print('passed', flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code, state.DIRECTORY, str(delegate)]
    others = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    told = [other.stdout.readline().strip() for other in others if other.stdout is not None]
    for other in others:
        other.communicate()
    assert sorted(told) == ["passed"] + ["refused"] * 5


def test_stale_records_are_swept_up(delegate: Path, directory: Path) -> None:
    code = "import sys; from shim import state; state.DIRECTORY = sys.argv[1]; "
    code += "[state.claim(sys.argv[2], f'dead{n}', {}, b'{}') for n in range(3)]"
    subprocess.run([sys.executable, "-c", code, state.DIRECTORY, str(delegate)], check=True)
    (delegate / "dead1").mkdir()  # this one lives
    claim(delegate, "a")
    assert {one["id"] for one in state.records()} >= {"dead1"}
    left = sorted(path.name for path in directory.iterdir() if path.suffix == ".json")
    assert len(left) == 2


def test_a_torn_record_is_none(delegate: Path, directory: Path) -> None:
    claim(delegate, "a")
    record = next(path for path in directory.iterdir() if path.suffix == ".json")
    record.write_bytes(record.read_bytes()[:-5])
    assert state.load(str(delegate), "a") is None


def test_a_record_that_others_can_write_is_not_believed(delegate: Path, directory: Path) -> None:
    claim(delegate, "a")
    record = next(path for path in directory.iterdir() if path.suffix == ".json")
    record.chmod(0o666)
    assert state.load(str(delegate), "a") is None


def test_a_record_of_another_version_is_none(delegate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(delegate, "a")
    monkeypatch.setattr(state, "VERSION", state.VERSION + 1)
    assert state.load(str(delegate), "a") is None


def test_the_directory_must_be_roots(directory: Path, delegate: Path) -> None:
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    with pytest.raises(Refused, match="others can change"):
        claim(delegate, "a")


def test_scratch_lives_as_long_as_its_process(delegate: Path, directory: Path) -> None:
    code = "import sys; from shim import state; state.DIRECTORY = sys.argv[1]; print(state.scratch(b'x'))"
    told = subprocess.run([sys.executable, "-c", code, state.DIRECTORY], check=True, capture_output=True, text=True)
    assert Path(told.stdout.strip()).read_bytes() == b"x"
    mine = state.scratch(b"y")
    claim(delegate, "a")
    assert Path(mine).exists()
    assert not Path(told.stdout.strip()).exists()


@pytest.mark.parametrize(
    ("root", "kind", "environment", "expected"),
    [
        ("/x/../y", "runc", {}, "/y"),
        (None, "runc", {}, "/run/runc"),
        (None, "crun", {}, "/run/crun"),
        (None, "runc", {b"XDG_RUNTIME_DIR": b"/run/user/0"}, "/run/runc"),
        (None, "crun", {b"XDG_RUNTIME_DIR": b"/run/user/0"}, "/run/user/0/crun"),
        (None, "crun", {b"XDG_RUNTIME_DIR": b""}, "/run/crun"),
    ],
)
def test_where_the_delegate_keeps_its_own(
    root: str | None, kind: str, environment: dict[bytes, bytes], expected: str
) -> None:
    assert state.root_of(root, kind, environment) == expected


def test_a_start_time_is_in_the_past() -> None:
    assert 0 < state._started("self") < time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") + 1
    assert state._started("0") == 0


@pytest.mark.parametrize(
    ("file", "keys"),
    [("state.json", ("init_process_pid", "init_process_start")), ("status", ("pid", "process-start-time"))],
    ids=["runc", "crun"],
)
def test_the_first_process_is_none_once_its_number_is_anothers(
    delegate: Path, file: str, keys: tuple[str, str]
) -> None:
    record = {"root": str(delegate), "id": "a"}
    (delegate / "a").mkdir()
    assert state.init_of(record) == 0
    started = state._started("self")
    for start, expected in ((started, os.getpid()), (started - 1, 0), (0, 0)):
        (delegate / "a" / file).write_text(json.dumps({keys[0]: os.getpid(), keys[1]: start}))
        assert state.init_of(record) == expected


def test_an_owner_that_has_ended_is_not_leaving(delegate: Path, tmp_path: Path) -> None:
    """Though others live on in its network; and who joined one leaves nothing that needs its record."""
    lease = tmp_path / "10.207.0.2"
    record = {"root": str(delegate), "id": "a", "address": str(lease)}
    assert not state.is_leaving(record)
    text = f"{state.name_of(str(delegate), 'a')} 1 1\n"
    for kept, leaving in ((text, True), ("-" + text[1:], False), (text.replace(text[:4], "ffff"), False), ("", False)):
        lease.write_text(kept)
        assert state.is_leaving(record) == leaving
    lease.write_text(text)
    assert not state.is_leaving({**record, "claim": str(lease)})


def test_a_network_is_forsaken_with_the_last_in_it(delegate: Path, directory: Path, tmp_path: Path) -> None:
    """Cheaply told, for each create: owner and who joined, each by its process or its own record."""
    lease, members = tmp_path / "net/cell/addresses/10.207.0.2", tmp_path / "net/cell/members"
    lease.parent.mkdir(parents=True)
    members.mkdir()

    def forsaken() -> bool:
        return host_state.forsaken(str(tmp_path / "net"), "cell", str(directory))

    lease.write_text("-owner 0 1\n")
    assert forsaken()
    joined = f"10.207.0.2.{{}}.{{}}.{state.name_of(str(delegate), 'b')}"
    (mine := members / joined.format(os.getpid(), state._started("self"))).touch()
    assert not forsaken()
    mine.unlink()
    (gone := members / joined.format(0, 1)).touch()
    (members / "10.207.0.2.net").touch()
    (delegate / "b").mkdir()
    for told, lives in (({"claim": str(gone)}, True), ({"claim": str(mine)}, False), ({}, False)):
        directory.mkdir(exist_ok=True)
        record = {"root": str(delegate), "id": "b", **told}
        (directory / f"{state.name_of(str(delegate), 'b')}.json").write_text(json.dumps(record))
        assert forsaken() != lives
    (members / "10.207.0.20.1.1.x").touch()  # another address's
    assert host_state.claims(str(lease)) == [str(gone)]


def test_an_address_that_was_released_while_somebody_waited_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook of the last one was faster than gc: there is nothing left to take back, or to write into."""
    lease = tmp_path / "10.207.0.2"
    lease.write_text("-name 1 1")
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: lease.unlink())
    before = os.listdir("/proc/self/fd")
    assert net_agents.hold(lease) is None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(("text", "others", "collects"), [("-name 1 1", 0, 1), ("-name 1 1", 1, 0), ("name 1 1", 0, 0)])
def test_a_claim_is_withdrawn_and_the_last_one_with_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, others: int, collects: int
) -> None:
    """A create that fails behind its claim: whoever ended meanwhile has counted it, and left the network to it."""
    lease, claim = tmp_path / "10.207.0.2", tmp_path / "claim"
    lease.write_text(text)
    for path in (claim, *(tmp_path / f"other{number}" for number in range(others))):
        os.link(lease, path)
    found: list[int] = []
    monkeypatch.setattr(net_down, "gc", lambda mark: found.append(mark))
    link.withdraw(str(claim), 7)
    link.withdraw(str(claim), 7)
    assert lease.exists() and not claim.exists() and found == [7] * collects


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"digest tag other\n" + b"\n\xff\0" * (1 << 20), (b"\n\xff\0" * (1 << 20), "digest", ["tag", "other"])),
        (b"digest tag\n", (b"", "digest", ["tag"])),
        (b"digest", (b"", "digest", [])),
        (b"0123abcd\ndigest\ntag\n", (b"digest\ntag\n", "0123abcd", [])),
        (b"\xff\n", (b"", "", [])),
        (b"", (b"", "", [])),
    ],
    ids=["3 MiB", "head only", "torn", "of before", "no text", "empty"],
)
def test_the_rules_as_they_were_loaded(data: bytes, told: tuple[bytes, str, list[str]], tmp_path: Path) -> None:
    assert host_state.rules(str(tmp_path)) == (b"", "", [])
    (tmp_path / ".rules").write_bytes(data)
    assert host_state.rules(str(tmp_path)) == told
