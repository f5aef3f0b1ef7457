"""agentshim's own verbs as a person calls them: explain with a policy that is only a draft, and readers that leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shim import policy, runc
from shim.cold import explain, front
from shim.errors import Invalid, Refused
from shim.verbs import gate
from tests.unit.policy_host import Host, make_host

REPOSITORY = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="LOUD: a bundle is root's: run as root")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = make_host(tmp_path, monkeypatch)
    host.configure('limit = "identity"\n')  # and seccomp stays top below: nothing is compiled or proved
    config = host.config()
    monkeypatch.setattr(policy, "config", lambda: config)
    monkeypatch.setattr(runc, "find", lambda config: SimpleNamespace(kind="crun", identity="x"))
    monkeypatch.setattr(gate, "launcher", lambda: "/usr/local/bin/agentshim")
    return host


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A directory with what an engine would write for a container of root's with one capability."""
    path = tmp_path / "bundle"
    (path / "rootfs").mkdir(parents=True)
    sets = {kind: ["CAP_CHOWN", "CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    process = {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "capabilities": sets}
    (path / "config.json").write_text(
        json.dumps({"ociVersion": "1.0.2", "process": process, "root": {"path": "rootfs"}, "linux": {}})
    )
    return path


DRAFT = """schema = 1
name = "draft"
about = "a draft"
base = "identity"
[capabilities]
add = [{ names = ["CHOWN"], why = "owns files" }]
"""


# ---------------------------------------------------------------- explain --policy FILE


@needs_root
def test_explain_tries_a_draft_of_anyone(host: Host, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draft = bundle.parent / "draft.toml"
    draft.write_text(DRAFT)
    draft.chmod(0o666)
    os.chown(draft, 12345, 12345)
    before = sorted(str(path) for path in host.etc.parent.rglob("*"))
    assert explain.main([str(bundle), "--policy", str(draft), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == "draft"
    assert (
        told["note"] == f"{draft} is only tried: whose file it is was not looked at, as it is for an installed policy"
    )
    lost = {one["key"]: one for one in told["decreases"]}["process.capabilities"]
    assert (lost["asked"], lost["granted"]) == ("CHOWN, KILL", "CHOWN")
    assert explain.main([str(bundle), "--policy", str(draft)]) == 0
    assert f"note: {draft} is only tried" in capsys.readouterr().out
    assert sorted(str(path) for path in host.etc.parent.rglob("*")) == before


@needs_root
def test_explain_takes_a_name_as_before(host: Host, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.policy("draft", DRAFT.partition('about = "a draft"\n')[2])
    assert explain.main([str(bundle), "--policy", "draft", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == "draft"
    assert "note" not in told


@needs_root
@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("draft", DRAFT.replace("CHOWN", "CHWON"), "draft.toml:6 capabilities.add.0..names.0.: asked CHWON"),
        ("draft", DRAFT.replace('"draft"', '"other"'), "draft.toml:2 name: asked other"),
        ("draft", DRAFT.replace('"identity"', '"missing"'), "name: asked missing"),
        ("dev", DRAFT.replace('"draft"', '"dev"'), "asked another policy dev, ceiling the built-in one"),
    ],
    ids=["a fault", "another name", "no such base", "the name of a built-in one"],
)
def test_explain_says_what_is_wrong_with_a_draft(host: Host, bundle: Path, name: str, text: str, said: str) -> None:
    draft = bundle.parent / f"{name}.toml"
    draft.write_text(text)
    with pytest.raises((Invalid, Refused), match=said):
        explain.main([str(bundle), "--policy", str(draft)])


@needs_root
def test_explain_refuses_a_draft_above_the_host_limit(
    host: Host, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = policy.Config({}, str(host.etc), str(host.var))
    monkeypatch.setattr(policy, "config", lambda: config)
    draft = bundle.parent / "draft.toml"
    draft.write_text(DRAFT)
    with pytest.raises(Refused, match=r"policy: draft: .*raise limit in config\.toml above dev"):
        explain.main([str(bundle), "--policy", str(draft)])


@needs_root
def test_an_annotation_names_no_file(host: Host, bundle: Path) -> None:
    """Attack: a bundle that brings its policy along."""
    spec = json.loads((bundle / "config.json").read_text())
    (bundle / "mine.toml").write_text(DRAFT.replace('"draft"', '"mine"'))
    spec["annotations"] = {"agentshim.policy": str(bundle / "mine.toml")}
    (bundle / "config.json").write_text(json.dumps(spec))
    with pytest.raises(Refused, match=r"agentshim\.policy: asked"):
        explain.main([str(bundle)])


# ---------------------------------------------------------------- readers that leave

VERBS = [
    ["policy", "list"],
    ["policy", "show", "agent"],
    ["policy", "show", "--json", "agent"],
    ["policy", "check", "agent", "web"],
    ["policy", "compile", "--builtin", "--output", "DIR"],
    ["policy", "lint", "agent"],
    ["policy", "table"],
    ["policy", "show", "no-such-policy"],
    ["policy", "--help"],
    ["explain", "--help"],
    ["explain", "no-such-container"],
    ["--version"],
    ["help"],
]


def call(words: list[str], tmp_path: Path, stdout: int) -> subprocess.CompletedProcess[str]:
    main = [sys.executable, "-I", "-S", "-B", str(REPOSITORY / "shim" / "main.py"), "0", "agentshim", "-"]
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    return subprocess.run([*main, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_reader_that_leaves_is_no_error(words: list[str], tmp_path: Path) -> None:
    """`agentshim policy show NAME | head -1`"""
    if words[0] == "explain" and os.geteuid() != 0:
        pytest.skip("LOUD: explain is root's: run as root")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = call(words, tmp_path, writer)
    finally:
        os.close(writer)
    own = "asked no-such" in done.stderr  # what is wrong is said all the same
    assert (done.stderr.count("\n"), done.returncode) == (1, 1) if own else done.stderr == ""
    nothing_lost = "--help" in words or "lint" in words  # argparse ends by itself; a clean profile says nothing
    assert own or done.returncode == (0 if nothing_lost else front.READER_GONE)
    assert own == (words[-1].startswith("no-such"))


def test_a_reader_that_leaves_in_the_middle(tmp_path: Path) -> None:
    show = [sys.executable, "-I", "-S", "-B", str(REPOSITORY / "shim" / "main.py"), "0", "agentshim", "-"]
    with subprocess.Popen(
        [*show, "policy", "show", "--json", "agent"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"{\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, front.READER_GONE)


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = call(["policy", "show", "agent"], tmp_path, full.fileno())
    assert done.returncode == 1
    assert done.stderr.startswith("front: stdout: asked No space left on device, ceiling")
    assert done.stderr.count("\n") == 1
