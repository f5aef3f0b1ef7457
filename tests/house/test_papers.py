"""The papers say what the code does: README, manuals and the others are held to schemas, verbs and options.

Belongs here: what can go stale in a text. Next door: test_build.py holds native/README.md to the C.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from native import build
from shim import argv, policy, runc
from shim.cold import front
from shim.cold.policy import policies
from shim.cold.policy.intents import INTENTS
from shim.cold.policy.policy_source import SECTIONS
from shim.dim import invocation

REPOSITORY = Path(__file__).resolve().parents[2]
MAN = REPOSITORY / "shim" / "man"
PAGES = sorted(page for section in "58" for page in MAN.glob(f"*.{section}"))
PAPERS = [
    REPOSITORY / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "native/README.md")
]
BEGIN, END = "<!-- policies: begin -->\n", "<!-- policies: end -->"
# Words for where and how the project was made, which are no reader's business.
PRIVATE = r"/work/|/tmp/|/root/|/home/|\.pyenv|\b(?:sessions?|assistants?|helpers?|prompts?|founders?)\b"
HARMLESS = ("/tmp/x", "--tmpfs /tmp:exec")


def readme() -> str:
    return PAPERS[0].read_text()


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPOSITORY / "shim" / "schema" / f"{name}.json").read_text())
    return found


def page(name: str) -> str:
    """A manual page as a reader sees it, near enough: without the requests, with its words."""
    return re.sub(r"^\.\\\".*$|\\[&-]", "", (MAN / name).read_text(), flags=re.MULTILINE)


def entry(name: str, term: str, macro: str = "Ic") -> str:
    """The text of the entry `term` of a page's list, up to the next that is no deeper."""
    lines, out, depth = page(name).splitlines(), [], None
    for line in lines:
        if depth is not None:
            depth += line.startswith(".Bl") - line.startswith(".El")
            if depth < 0 or (depth == 0 and line.startswith(".It")):
                break
            out.append(line)
        elif re.match(rf"\.It {macro} {re.escape(term)}(\s|$)", line):
            depth = 0
    assert out, f"{name} has no entry {term}"
    return "\n".join(out)


def words(text: str) -> set[str]:
    return set(re.findall(r"[@\w][\w.-]*", text))


def keys(shape: Any) -> Iterator[str]:
    """Every key and every word of an enumeration that a schema's section knows, references followed."""
    if isinstance(shape, list):
        for one in shape:
            yield from keys(one)
    if not isinstance(shape, dict):
        return
    for name, value in shape.items():
        if name == "$ref":
            yield from keys(schema("policy")["$defs"][value.rpartition("/")[2]])
        elif name == "properties":
            yield from value
            yield from keys(list(value.values()))
        elif name == "enum":
            yield from (one for one in value if isinstance(one, str))
        elif name in ("items", "propertyNames", "additionalProperties", "else"):
            yield from keys(value)


# README


def test_policy_table_is_fresh() -> None:
    shown = readme().partition(BEGIN)[2].partition(END)[0]
    assert shown == policies.table(), "paste the output of `agentshim policy table` between the marks"


def test_bench_marks() -> None:
    """`make bench` prints a table; whoever pastes it finds the place."""
    begin, end = readme().find("<!-- bench: begin -->"), readme().find("<!-- bench: end -->")
    assert 0 < begin < end


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: path.name)
def test_make_targets_exist(paper: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    asked = set(re.findall(r"(?:`|^    )make ([a-z]+)", paper.read_text(), re.MULTILINE))
    assert asked <= targets
    if paper == PAPERS[0]:
        assert {"demo", "test", "install", "bench"} <= asked


def test_links_lead_somewhere() -> None:
    for paper in PAPERS:
        for target in re.findall(r"\]\(([^)#:]+)\)", paper.read_text()):
            assert (paper.parent / target).exists(), f"{paper.name}: {target}"


def test_examples_of_json_are_json() -> None:
    (block,) = re.findall(r"^    (\{ \"runtimes\".*?\} \})$", readme(), re.MULTILINE | re.DOTALL)
    named = json.loads(block)["runtimes"]
    assert set(named) <= {"agentshim", *(f"agentshim-{one}" for one in policy.DEFAULTS["names"])}
    assert all(Path(one["path"]).name == name for name, one in named.items())


def test_version_is_one() -> None:
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and version[1] == front.VERSION
    assert f"## [{front.VERSION}]" in (REPOSITORY / "CHANGELOG.md").read_text()


# policies and configuration that the papers show


def shown_policies() -> list[str]:
    """Every whole policy that a paper or a page prints."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", readme(), re.MULTILINE)
    blocks = [re.sub(r"^    ", "", block, flags=re.MULTILINE).partition("\n$ ")[0] for block in blocks]
    blocks += re.findall(r"^\.Bd -literal\n(.*?)^\.Ed", page("agentshim-policy.5"), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "schema = 1" in block]


def name_of(text: str) -> str:
    found: list[str] = re.findall(r'^name = "(.*)"', text, re.MULTILINE)
    return found[0]


def test_there_are_shown_policies() -> None:
    assert {name_of(text) for text in shown_policies()} == {"builder", "service", "desk", "researcher"}


@pytest.mark.parametrize("text", shown_policies(), ids=name_of)
def test_shown_policies_are_well_formed(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"{name_of(text)}.toml"
    file.write_text(text)
    code = policies.main(["check", str(file)], str(tmp_path / "etc"), str(tmp_path / "var"))
    told = capsys.readouterr().out
    if name_of(text) == "desk":  # the page says that it is for a host that makes it the limit
        assert "above the host limit dev" in told and len(told.splitlines()) == 1
    else:
        assert code == 0, told


def test_shown_configuration_is_well_formed(tmp_path: Path) -> None:
    from shim.cold.policy.policy_source import examine

    (shown,) = re.findall(r"^\.Bd -literal\n(.*?)^\.Ed", page("agentshim.toml.5"), re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (delegate = .*\n(?:    .*\n)+)", readme(), re.MULTILINE)
    for text in (shown, *(re.sub(r"^    ", "", one, flags=re.MULTILINE) for one in indented)):
        assert text.startswith("delegate"), "the page says to write it first"
        file = tmp_path / "config.toml"
        file.write_text(text)
        assert not examine(str(file), "config", trusted=False)[1]
    assert indented


# manuals


def test_there_are_three_pages() -> None:
    assert {one.name for one in PAGES} == {"agentshim.8", "agentshim-policy.5", "agentshim.toml.5"}


@pytest.mark.parametrize("key", schema("config")["properties"])
def test_every_config_key_has_its_entry(key: str) -> None:
    entry("agentshim.toml.5", key)


def test_config_defaults_and_values_are_told() -> None:
    for key, default in policy.DEFAULTS.items():
        told = words(entry("agentshim.toml.5", key))
        for one in default if isinstance(default, list) else [default]:
            assert one is None or words(one) <= told, key
    for key, shape in schema("config")["properties"].items():
        assert set(shape.get("enum", ())) <= words(entry("agentshim.toml.5", key)), key
    for place in runc.PLACES:
        assert place in entry("agentshim.toml.5", "delegate")


def test_every_key_of_a_policy_file_is_in_the_manual() -> None:
    told = words(page("agentshim-policy.5"))
    assert {key for key in schema("policy")["properties"] if key not in SECTIONS} <= told


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_has_its_place(section: str) -> None:
    told = words(entry("agentshim-policy.5", f"[{section}]"))
    reasons = {"why", "doc", "expires"}  # one section of the page for all
    known = set(keys(schema("policy")["properties"][section])) - reasons
    if section == "capabilities":
        known -= set(schema("policy")["$defs"]["capability"]["enum"])  # capabilities(7) has them
    if section == "paths":
        assert {"size", "exec"} <= told
    assert known <= told, sorted(known - told)


@pytest.mark.parametrize("name", INTENTS)
def test_every_intent_is_told_with_what_it_grants(name: str) -> None:
    told = words(entry("agentshim-policy.5", name, "Qq"))
    for table in INTENTS[name].joins.get("capabilities", {}).get("add", ()):
        granted = set(table["names"])
        inherited = name == "web-service" and granted == {"NET_BIND_SERVICE"}  # "binds :80 and :443"
        assert granted <= told or inherited
    shape = schema("policy")["$defs"]["intent"]
    needed = {"workspace": "path", "outbound": "to"}.get(name)
    assert needed is None or (needed in told and needed in shape["properties"])


def test_every_seccomp_profile_and_group_is_told() -> None:
    from shim.cold.seccomp import seccomp_toml

    told = words(entry("agentshim-policy.5", "[seccomp]"))
    assert set(seccomp_toml.names()) <= told
    groups = seccomp_toml._read("groups")
    assert {f"@{group}" for group in groups} <= told


def test_what_no_key_grants_is_told() -> None:
    told = words(entry("agentshim-policy.5", "[invocation]"))
    keyed = set(schema("policy")["$defs"]["invocation"]["properties"])
    unkeyed = {{"subcgroup": "cgroup"}.get(flag, flag) for flag in invocation.FLAGS if flag not in keyed}
    assert unkeyed <= told


def test_every_verb_is_in_the_manual() -> None:
    told = set(re.findall(r"\w+", page("agentshim.8")))
    assert {*argv.VERBS, *argv.OURS, "help"} <= told


def test_every_global_option_is_in_the_manual() -> None:
    told = page("agentshim.8").partition(".Ss Global options")[2].partition(".Sh")[0]
    elsewhere = {"help", "version"}  # among the verbs
    assert set(re.findall(r"^\.It Fl -([a-z-]+)", told, re.MULTILINE)) == {*argv.GLOBALS} - elsewhere
    assert {f"-{name}" for name in elsewhere} <= set(re.findall(r"(?<=Fl )-\w+", page("agentshim.8")))


def test_the_manual_says_what_is_passed_on() -> None:
    """The launcher's table and the page's list are one."""
    source = (build.NATIVE / "launcher.c").read_text()
    passed = re.findall(r'"(\w+)"', source.partition("PASS[] = {")[2].partition("}")[0])
    told = page("agentshim.8").partition(".Ss Passed on")[2].partition(".Pp")[0]
    assert re.findall(r"^\.Cm (\w+)", told, re.MULTILINE) == passed


@pytest.mark.parametrize("verb", ["list", "show", "check", "compile", "table"])
def test_every_option_of_policy_is_in_the_manual(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        policies.main([verb, "--help"])
    options = set(re.findall(r"^\s+--([a-z]+)", capsys.readouterr().out, re.MULTILINE))
    told = re.findall(rf"^\.(?:It )?Cm policy {verb}.*$\n(?:\.O.*\n)*", page("agentshim.8"), re.MULTILINE)
    synopsis, entry_of_list, *_mentions = told
    for lines in (synopsis, entry_of_list):
        assert options == set(re.findall(r"Fl -([a-z]+)", lines))


def test_verbs_of_policy_are_all_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        policies.main(["--help"])
    verbs = re.findall(r"^    ([a-z]+)", capsys.readouterr().out, re.MULTILINE)
    for verb in verbs:
        assert re.search(rf"^\.Cm policy {verb}$", page("agentshim.8"), re.MULTILINE), verb


def test_every_option_of_explain_is_in_the_manual(capsys: pytest.CaptureFixture[str]) -> None:
    from shim.cold import explain

    with pytest.raises(SystemExit):
        explain.main(["--help"])
    options = set(re.findall(r"^\s+--([a-z]+)", capsys.readouterr().out, re.MULTILINE))
    told = page("agentshim.8").partition(".It Cm explain")[2].partition(".It Cm policy")[0]
    assert options
    assert options == set(re.findall(r"^\.It Fl -([a-z]+)", told, re.MULTILINE))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
@pytest.mark.parametrize("tool", [("groff", "-Tutf8", "-mandoc", "-ww"), ("mandoc", "-Tlint", "-Wwarning")])
def test_pages_render_without_warnings(path: Path, tool: tuple[str, ...]) -> None:
    if not shutil.which(tool[0]) or (tool[0] == "groff" and not has_macros()):
        pytest.skip(f"SKIPPED LOUDLY: {tool[0]} is not installed, whole: {path.name} was not rendered")
    done = subprocess.run([*tool, str(path)], capture_output=True, text=True)
    told = done.stderr if tool[0] == "groff" else done.stdout
    assert (done.returncode, told) == (0, "")


def has_macros() -> bool:
    """Debian's groff-base is enough; some images have a groff without mdoc."""
    probe = ".Dd January 1, 2026\n.Dt PROBE 8\n.Os\n.Sh NAME\n.Nm probe\n.Nd probe\n"
    done = subprocess.run(["groff", "-Tutf8", "-mandoc"], input=probe, capture_output=True, text=True)
    return done.returncode == 0 and "probe" in done.stdout


# all of them


@pytest.mark.parametrize("path", [*PAPERS, *PAGES], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_private(path: Path) -> None:
    """No path of the machine that it was written on, and nothing about how it was written."""
    text = path.read_text()
    for one in HARMLESS:
        text = text.replace(one, "")
    for number, line in enumerate(text.splitlines(), 1):
        found = re.search(PRIVATE, line, re.IGNORECASE)
        assert not found, f"{path.name}:{number}: {line}"


@pytest.mark.parametrize("path", PAPERS[:4], ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    """Tables aside, which Markdown keeps on one line."""
    long = [line for line in path.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long
