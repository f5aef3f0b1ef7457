"""`agentshim policy …`: what its verbs print, and the README's table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shim import policy, product
from shim.cold.policy import compile as cold
from shim.cold.policy.policies import main, table
from shim.cold.policy.policy_table import ORDER, ROWS
from shim.dim import paths
from shim.errors import Invalid, Refused
from shim.kernel import Facts
from tests.unit.policy_host import Host, make_host

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- policies: begin -->", "<!-- policies: end -->"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return make_host(tmp_path, monkeypatch)


def run(host: Host, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(list(argv), str(host.etc), str(host.var))
    return code, capsys.readouterr().out


def test_list(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.policy("mine", 'base = "locked"\n')
    host.policy("big", 'base = "dev"\n[resources]\npids = 9999\n')
    host.policy("broken", "[")
    host.configure('mode = "strict"\ndefault = "mine"\nnames = ["mine"]\n')
    code, out = run(host, capsys, "list")
    head, _, *rows = out.splitlines()
    found = {row.split()[0]: row for row in rows}
    assert code == 0
    assert "mode strict, default mine, limit dev" in head
    assert set(found) == {*policy.BUILTIN, "mine", "big", "broken"}
    assert "yes" in found["mine"]
    assert found["mine"].endswith("default, name")
    assert cold.compile_builtin("agent")["digest"][7:19] in found["agent"]
    assert "built-in" in found["agent"]
    assert "no: resources" in found["big"]
    assert "Invalid: agentshim policy check broken" in found["broken"]
    assert "no: capabilities" in found["identity"]


def test_show(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    text = '[capabilities]\nadd = [{ names = ["CHOWN"], why = "unpacks archives", expires = 2020-01-01 }]\n'
    host.policy("mine", f'base = "web"\n{text}')
    code, out = run(host, capsys, "show", "mine")
    assert code == 0
    assert "NET_BIND_SERVICE: binds :80 and :443 and gives its workers another user (web.toml:" in out
    assert "CHOWN: unpacks archives (mine.toml:6, until 2020-01-01) (EXPIRED)" in out
    code, out = run(host, capsys, "show", "mine", "--json")
    shown = json.loads(out)
    assert shown["sections"]["resources"] == {"pids": 512}
    assert shown["above_limit"] == []
    assert shown["why"]["capabilities.NET_BIND_SERVICE"]["intent"] == "web-service"
    with pytest.raises(Refused):
        run(host, capsys, "show", "missing")


def test_show_a_policy_above_the_limit(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(host, capsys, "show", "identity")
    assert code == 0
    assert "above the host limit dev" in out
    assert "top: everything" in out


def test_check_finds_nothing_where_nothing_is_wrong(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.policy("mine", 'base = "locked"\n')
    host.configure('default = "mine"\n')
    assert run(host, capsys, "check") == (0, "all is well\n")


def test_check_says_all_faults_of_all_files(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.policy("one", "[mounts]\nvolumes = 1\nexec = 2\n")
    host.policy("two", 'base = "three"\n')
    host.policy("big", 'base = "dev"\n[resources]\npids = 9999\n')
    host.policy("loose").chmod(0o666)
    host.configure('names = ["four"]\n')
    code, out = run(host, capsys, "check")
    assert code == 1
    for said in (
        "one.toml:5 mounts.volumes: asked 1",
        "one.toml:6 mounts.exec: asked 2",
        "name: asked three",
        "name: asked four",
        "big: resources: asked pids = 9999, ceiling pids = 4096: void, above the host limit dev",
        "loose.toml: asked mode 0666",
    ):
        assert said in out


def test_check_a_broken_config(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.configure("mode = 1\nlimit = 2\n")
    code, out = run(host, capsys, "check")
    assert code == 1
    assert "config.toml:1 mode" in out
    assert "config.toml:2 limit" in out


def test_check_says_expired_joins(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    path = host.policy(
        "mine", 'base = "locked"\nintents = [{ name = "packages", why = "last year", expires = 2020-01-01 }]\n'
    )
    for what in ("mine", str(path)):
        code, out = run(host, capsys, "check", what)
        assert code == 0
        assert "intents.packages: expired, left out: last year (mine.toml:" in out


def test_check_an_intent_above_the_host_limit(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Namespaces of their own are what the built-in limit keeps from containers: its owner raises it, or they stay."""
    path = host.policy(
        "mine", 'base = "agent"\nintents = [{ name = "user-namespaces", why = "browsers", doc = "https://e.org" }]\n'
    )
    code, out = run(host, capsys, "check", str(path))
    assert code == 1 and "mine: seccomp: asked " in out and "void, above the host limit dev" in out
    host.configure('limit = "identity"\n')
    assert run(host, capsys, "check", str(path))[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        'why = "a while"\ndoc = "https://e.org"\nexpires = 2020-01-01\nmounts = "top"\n',
    ],
    ids=["nothing", "all of it expired"],
)
def test_check_a_policy_that_grants_nothing(host: Host, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = host.policy("mine", text)
    for what in (["mine"], [str(path)], []):
        code, out = run(host, capsys, "check", *what)
        assert code == 1
        assert "mine: sections: asked none that grants anything, ceiling one at least: under it every container" in out
    ceiling = product.from_policy(host.load("mine").sections)
    spec = {"process": {"args": ["x"], "cwd": "/", "user": {"uid": 1, "gid": 1}}, "root": {"path": "r"}, "linux": {}}
    asked = {**product.BOTTOM, "paths": paths.from_spec(spec, Facts())}
    assert product.refusals(asked, product.meet(asked, ceiling))  # even of a container that asks for nothing


def test_check_a_file_that_could_never_be_installed(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    path = host.etc / "dev.toml"
    path.write_text('schema = 1\nname = "dev"\nabout = "a draft"\nbase = "agent"\n')
    code, out = run(host, capsys, "check", str(path))
    assert code == 1
    assert "asked another policy dev, ceiling the built-in one" in out
    assert run(host, capsys, "check", f"{policy.PACKAGE}/policies/dev.toml") == (0, "all is well\n")


def test_show_says_what_has_expired(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.policy("mine", 'why = "a while"\ndoc = "https://e.org"\nexpires = 2020-01-01\nmounts = "top"\n')
    _, out = run(host, capsys, "show", "mine")
    section = out.partition("[mounts]")[2].partition("\n[")[0]
    assert "bottom: nothing" in section
    assert "mounts: a while (mine.toml:7, until 2020-01-01, https://e.org) (EXPIRED)" in section


def test_check_a_file_of_anyone(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "draft.toml"
    path.write_text('schema = 1\nname = "draft"\nabout = "a draft"\nbase = "agent"\n')
    path.chmod(0o666)
    assert run(host, capsys, "check", str(path)) == (0, "all is well\n")
    assert run(host, capsys, "check", str(tmp_path / "missing.toml"))[0] == 1


def test_compile_ahead(host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    host.policy("mine", 'base = "locked"\n')
    code, out = run(host, capsys, "compile")
    assert code == 0
    assert "mine.json sha256:" in out
    monkeypatch.setattr(cold, "compile", lambda *_: pytest.fail("it was compiled before"))
    assert host.load("mine").name == "mine"


def test_compile_elsewhere(host: Host, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(host, capsys, "compile", "--builtin", "--output", str(tmp_path / "out"))
    assert {path.stem for path in (tmp_path / "out").iterdir()} == set(policy.BUILTIN)


def test_compile_a_wrong_policy(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.policy("mine", "[mounts]\nvolumes = 1\n")
    with pytest.raises(Invalid):
        run(host, capsys, "compile", "mine")


def test_the_table_has_a_row_for_each_thing_and_a_column_for_each_policy(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = run(host, capsys, "table")
    lines = out.splitlines()
    assert code == 0
    assert out == table()
    assert len(lines) == len(ROWS) + 2
    assert {line.count(" | ") for line in lines} == {len(ORDER)}


def test_the_readme_has_the_table() -> None:
    if not README.exists():
        pytest.skip("LOUD: there is no README.md yet")
    text = README.read_text()
    assert BEGIN in text, f"README.md needs the markers {BEGIN} and {END}"
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table().strip(), "run: agentshim policy table"
