"""What a proved meet stands for and what it had to leave out: its key, its place on disk, and what people are told."""

from __future__ import annotations

import json
import os
import posix
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shim import audit, policy
from shim.cold.seccomp import libseccomp, prove, seccomp_source
from shim.dim import seccomp
from shim.errors import HostError
from shim.lattice import Decrease
from shim.plan import Plan
from shim.seccomp import cache, model
from shim.seccomp.profile import Profile
from shim.verbs import gate
from tests.laws.test_seccomp_proof import MISREAD
from tests.unit.seccomp_inputs import profile, rule
from tests.unit.test_seccomp_profile import Runc, proofs

ROOT = Path(seccomp.__file__).parents[2]
READ = profile("ERRNO", rule("read write", "ALLOW"))
NO_BPF = profile("ALLOW", rule("bpf", "ERRNO"))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setattr(gate, "PROVED", str(tmp_path / "seccomp"))
    monkeypatch.setattr(policy, "VAR", str(tmp_path))
    return tmp_path / "seccomp"


def admitted(asked: Profile, ceiling: Profile) -> Profile:
    """What a call is granted."""
    try:
        gate.Admitter(Runc())(asked, ceiling, 0)  # type: ignore[arg-type]
        return seccomp.meet(asked, ceiling)
    finally:
        seccomp._settled.clear()


# --- the key

RULES = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
    ],
}


def kernel(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """The kernel is of that release from here on."""
    now = os.uname()
    other = posix.uname_result((now.sysname, now.nodename, release, now.version, now.machine))
    monkeypatch.setattr(posix, "uname", lambda: other)


def test_what_was_proved_under_another_kernel_is_not_granted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of minKernel 4.8 counts on 6.1; on 4.4 its call would still be granted out of the cache."""
    (place.parent / "p.json").write_text(json.dumps(RULES))
    section = seccomp_source.expand({"file": "p.json"}, str(place.parent))
    calls = []
    for release in ("6.1.0-1-amd64", "4.4.0"):
        kernel(monkeypatch, release)
        ceiling = seccomp.resolve(seccomp.from_policy(section), 0)
        calls.append("ptrace" in str(admitted(Profile(NO_BPF.raw), ceiling).raw))
    assert calls == [True, False]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of our sources that the gate looks at."""
    shutil.copytree(ROOT / "shim", tmp_path / "tree/shim", ignore=shutil.ignore_patterns("__pycache__", "policies"))
    monkeypatch.setattr(gate, "_home", lambda: str(tmp_path / "tree"))
    return tmp_path / "tree"


SOURCES = [f"shim/{room}/{name}.py" for room, names in gate.MAKERS for name in names]


def test_a_mended_source_leaves_no_proof(tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = proofs(monkeypatch, place.parent)
    admitted(NO_BPF, READ)
    admitted(NO_BPF, READ)
    assert len(done) == 1
    for number, source in enumerate(SOURCES, 2):
        there = (tree / source).stat()
        (tree / source).write_text((tree / source).read_text() + "#")
        os.utime(tree / source, ns=(there.st_atime_ns, there.st_mtime_ns))
        admitted(NO_BPF, READ)
        admitted(NO_BPF, READ)
        assert len(done) == number, source


@pytest.mark.parametrize("what", ["its time", "its file"])
def test_a_source_of_the_same_length_is_another(
    tree: Path, place: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    done = proofs(monkeypatch, place.parent)
    admitted(NO_BPF, READ)
    path = tree / SOURCES[0]
    before = path.stat()
    if what == "its file":
        path.with_name("new").write_bytes(path.read_bytes())
        path.with_name("new").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (what == "its time")))
    admitted(NO_BPF, READ)
    assert len(done) == 2


def test_sources_that_cannot_be_looked_at_are_an_error(tree: Path, place: Path) -> None:
    (tree / SOURCES[-1]).unlink()
    with pytest.raises(HostError):
        admitted(NO_BPF, READ)


USED = """
import sys
sys.path.insert(0, sys.argv[1])
from shim.cold.seccomp import first_filter, prove
from shim.dim import seccomp
from shim.seccomp import resolve
from shim.seccomp.profile import Profile
rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
arg = {"index": 0, "op": "SCMP_CMP_LT", "value": 5}
conditional = {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [arg]}
seccomp.check(READ := {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule, conditional]})
prove.granted(Profile(READ), Profile({**READ, "defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}))
print(*(name for name in sys.modules if name.startswith(("shim.seccomp.", "shim.cold.")) or name == seccomp.__name__))
"""
# The way of a proof to and from the disk, and words for people: nothing that a proof could be wrong by.
OTHERS = {"shim.seccomp.cache", "shim.cold.seccomp"}


def test_every_source_that_makes_a_proof_is_looked_at() -> None:
    command = [sys.executable, "-I", "-S", "-c", USED, str(ROOT)]
    used = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert {source.removesuffix(".py").replace("/", ".") for source in SOURCES} == used - OTHERS


# --- its place


def test_the_cache_keeps_what_was_used_last(place: Path) -> None:
    for number in range(9):
        cache.store(str(place), f"k{number}", READ, {})
        os.utime(place / f"k{number}", ns=(number, number))
    os.utime(place / "k2", ns=(100, 2))  # read since
    (place / ".k").touch()  # of a store that was killed, just now
    cache.prune(str(place), 4)
    assert sorted(os.listdir(place)) == [".k", "k2", "k7", "k8"]


def test_profiles_without_end_fill_no_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may start containers can ask for a profile of its own each time; each leaves a proof and a record."""
    proofs(monkeypatch, place.parent)
    for number in range(cache.MOST // 2 + 40):
        asked = profile("ALLOW", rule("bpf", "ERRNO", (0, "EQ", number)))
        admit = gate.Admitter(Runc())  # type: ignore[arg-type]
        admit(asked, READ, 0)
        seccomp._settled.clear()
        gate.saw(admit.unseen, 3)
    assert len(os.listdir(place)) == cache.MOST
    assert cache.load(str(place), admit.unseen) and gate.is_seen(admit.unseen), "the last one is there"


# --- what is left out, and what is said of it

CONDITIONS = [
    rule(name, "ALLOW", (0, "EQ", n), (1, "EQ", n * 7))
    for name, many in (("mmap", 300), ("munmap", 90))
    for n in range(many)
]
WIDE = profile("ERRNO", rule("read", "ALLOW"), *CONDITIONS)
UNEQUAL = rule("socket", "ALLOW", (0, "NE", 5), (1, "NE", 6), (2, "NE", 7))
# What is asked, what the policy says, the call that is denied for no fault of the policy's, and why it is.
KILLS = rule("mmap", "KILL", (0, "EQ", 0), (1, "EQ", 0), (2, "EQ", 0))
LEFT_OUT: dict[str, tuple[Profile, Profile, str, str]] = {
    "too long": (WIDE, NO_BPF, "mmap", prove.TOO_LONG),
    "misread": (MISREAD["native"][1], profile("ERRNO", rule("ptrace read", "ALLOW")), "ptrace", prove.MISREAD),
    "too many to be read": (profile("ERRNO", rule("read", "ALLOW"), UNEQUAL), NO_BPF, "socket", model.TOO_MANY),
    "too many to be met": (
        profile("ERRNO", rule("read", "ALLOW"), rule("mmap", "ALLOW", (0, "NE", 5))),
        profile("ERRNO", rule("read", "ALLOW"), rule("mmap", "ALLOW", (1, "NE", 5))),
        "mmap",
        model.TOO_MANY,
    ),
    "too many to be written": (
        profile("ERRNO", KILLS, rule("mmap", "ALLOW", (2, "EQ", 1))),
        NO_BPF,
        "mmap",
        model.TOO_MANY,
    ),
}


def denied(granted: Profile) -> list[str]:
    """What the audit log says of it."""
    return audit.denied(Plan({}, {}, {"seccomp": granted}, {}, None, (seccomp,)))


def told(losses: list[Decrease], call: str) -> list[str]:
    """The reasons that name the call."""
    return [loss.why for loss in losses if call in loss.asked.split(", ")]


@pytest.mark.parametrize("way", ["on a miss", "on a hit"])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_call_that_is_left_out_is_told_with_its_reason(
    name: str, way: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ceiling, call, why = LEFT_OUT[name]
    if why == prove.MISREAD and libseccomp.version() != (2, 5, 4):
        pytest.skip("LOUD: this libseccomp is not the one that misreads the profile")
    monkeypatch.setattr(prove, "MOST_INSTRUCTIONS", 1400)
    if way == "on a hit":
        admitted(Profile(asked.raw), Profile(ceiling.raw))
        monkeypatch.delattr(prove, "granted")
    asked, ceiling = Profile(asked.raw), Profile(ceiling.raw)
    granted = admitted(asked, ceiling)
    assert not granted.model.calls.get(call, granted.model.rest)[1]
    losses = seccomp.explain(asked, ceiling, granted)
    assert told(losses, call) == [why]
    assert denied(granted) == [f"{call}: {why}"]


def test_a_call_that_the_policy_denies_is_the_policys(place: Path) -> None:
    asked, ceiling = NO_BPF, READ
    losses = seccomp.explain(asked, ceiling, admitted(asked, ceiling))
    (loss,) = [loss for loss in losses if loss.granted == "denied"]
    assert loss.why == "the policy's profile does not allow them"
    assert denied(READ) == []


def test_what_a_side_denies_anyway_is_not_left_out(place: Path) -> None:
    asked = profile("ERRNO", rule("read", "ALLOW"), UNEQUAL)
    granted = admitted(asked, READ)
    assert (granted.proof or {})["dropped"] == {}
    assert told(seccomp.explain(asked, READ, granted), "socket") == []


def test_where_no_filter_was_asked_it_is_told_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "MOST_INSTRUCTIONS", 1400)
    losses = seccomp.explain(seccomp.TOP, WIDE, admitted(seccomp.TOP, WIDE))
    assert [loss.why for loss in losses] == ["nothing was filtered", prove.TOO_LONG]


def test_the_audit_log_says_no_more_than_a_line_holds() -> None:
    granted = Profile({"defaultAction": "SCMP_ACT_ERRNO"})
    granted.proof = {"dropped": {f"{'x' * 300}{number}": "y" for number in range(99)}}
    found = denied(granted)
    assert len(found) == audit.MOST_DENIED and all(len(one) <= audit.MOST_NAME for one in found)
