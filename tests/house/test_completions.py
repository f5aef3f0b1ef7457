"""Completion knows every verb, verb below it and option that the commands themselves know; and the shells show it.

Belongs here: the table against argparse, and bash, zsh and fish run for real. Next door: shim/completions only asks.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shim import argv, policy, state
from shim.cli import Context
from shim.cold import complete, front
from shim.errors import ShimError

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = REPOSITORY / "shim" / "completions"
PLAIN = ("version",)  # no parser of their own


def helped(*words: str) -> str:
    """What a verb says of itself."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit, ShimError):
        front.run(argv.parse([*words, "--help"]), Context(0, "agentshim"))
    return told.getvalue()


def subverbs(told: str) -> set[str]:
    """The verbs below a verb, as argparse lists them: indented by four, words behind them or below."""
    listed = told.partition("positional arguments:")[2].partition("\noptions:")[0]
    rows = re.findall(r"^    ([a-z][a-z-]*)(?:  |$)", listed, re.MULTILINE)
    return set(rows) - {"containerd", "docker", "podman", "crio"}


def people() -> list[str]:
    return [verb for verb in argv.OURS if verb not in (*complete.HIDDEN, *PLAIN)]


@pytest.mark.parametrize("verb", argv.OURS)
def test_every_verb_is_known(verb: str) -> None:
    assert verb in complete.HIDDEN or verb in {key[0] for key in complete.GRAMMAR}, "add it to shim/cold/complete.py"


@pytest.mark.parametrize("verb", people())
def test_every_verb_below_and_option_is_known(verb: str) -> None:
    told = helped(verb)
    assert told, f"agentshim {verb} --help says nothing"
    below = subverbs(told)
    known = {key[1] for key in complete.GRAMMAR if key[0] == verb and key[1:]}
    assert below == known
    keys: list[tuple[str, ...]] = [(verb, one) for one in sorted(below)] or [(verb,)]
    for key in keys:
        options = set(re.findall(r"^  (?:-\w, )?(--?[a-z][a-z-]*)", helped(*key), re.MULTILINE)) - {"--help", "-h"}
        assert options == set(complete.GRAMMAR[key][0]), key


def test_verbs_are_shown_that_exist() -> None:
    shown = set(complete.answers([""]))
    assert shown == {*argv.OURS, *argv.VERBS, "help"} - set(complete.HIDDEN)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "records", lambda: [{"id": "bc01"}, {"id": "ab12"}, {"id": "ab34"}])


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    "words, expected",
    [
        (["expl"], ["explain"]),
        (["--root", "/x", "--debug", "expl"], ["explain"]),
        (["--log-f"], ["--log-format"]),
        (["explain", ""], ["ab12", "ab34", "bc01", ":files"]),
        (["explain", "ab"], ["ab12", "ab34", ":files"]),
        (["explain", "--policy", "lo"], ["locked", ":files"]),
        (["explain", "--json", "bc"], ["bc01", ":files"]),
        (["explain", "--p"], ["--policy"]),
        (["policy", ""], ["list", "show", "check", "compile", "lint", "locks", "table"]),
        (["policy", "show", "--json", "w"], ["web"]),
        (["policy", "lint", ""], [":files"]),
        (["policy", "list", ""], []),
        (["lease", "egress", "a"], ["ab12", "ab34"]),
        (["lease", "egress", "--ttl", ""], []),
        (["lease", "egress", "--ttl", "10m", "a"], ["ab12", "ab34"]),
        (["lease", "egress", "ab12", ""], []),
        (["install", ""], ["docker", "containerd", "podman", "crio"]),
        (["create", "--bun"], ["--bundle"]),
        (["doctor", "--"], ["--json", "--help"]),
        (["no-such-verb", ""], []),
        (["policy", "no-such", ""], []),
        ([], "verbs"),
    ],
)
def test_answers(words: list[str], expected: list[str] | str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complete.main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == (complete.verbs() if expected == "verbs" else expected)


def test_policies_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    for name in ("mine.toml", "README"):
        (tmp_path / "policies" / name).touch()
    assert complete.policies(str(tmp_path)) == sorted({*policy.BUILTIN, "mine"})


def test_never_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unreadable() -> list[dict[str, str]]:
        raise PermissionError(13, "no")

    monkeypatch.setattr(state, "records", unreadable)
    assert complete.main(["explain", ""]) == 0
    assert capsys.readouterr().out == ""


def test_nothing_that_steers_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(state, "records", lambda: [{"id": "a\x1b[2J"}, {"id": "ab"}])
    complete.main(["denied", "a"])
    assert capsys.readouterr().out == "ab\n"


# the shells

BASH = """
source "$1"; shift
complete -p agentshim >/dev/null || exit 3
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_agentshim "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
# What zsh would show: compadd and _files are its own, and need a terminal.
ZSH = """
file=$1; shift
compdef() { : }
compadd() { [[ $1 == -a ]] && print -rl -- "${(@P)2}" }
_files() { print -rl -- *(N) }
source $file
words=("$@"); CURRENT=$#
_agentshim
"""


@pytest.fixture(scope="module")
def program() -> str:
    path = REPOSITORY / "native" / "build" / "agentshim"
    if not path.exists() or os.geteuid() != 0:
        pytest.skip("SKIPPED LOUDLY: the launcher is not built, or runs nothing for who is not root")
    return str(path)


@pytest.fixture
def directory(tmp_path: Path, program: str) -> Path:
    """Where the shell is, and where it finds agentshim: alone, so that words are this tree's."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "bin/agentshim").symlink_to(program)
    (tmp_path / "here/a file.toml").touch()
    return tmp_path


def shown(directory: Path, *command: str) -> list[str]:
    if not shutil.which(command[0]):
        pytest.skip(f"SKIPPED LOUDLY: {command[0]} is not installed")
    environment = {"PATH": f"{directory}/bin:{os.environ['PATH']}", "HOME": str(directory), "LC_ALL": "C.UTF-8"}
    told = subprocess.run(
        command, capture_output=True, text=True, timeout=30, cwd=directory / "here", env=environment, check=False
    )
    assert (told.returncode, told.stderr) == (0, ""), told
    return [line for line in told.stdout.splitlines() if line]


def ask(shell: str, directory: Path, *words: str, program: str = "agentshim") -> list[str]:
    """What a shell offers for the last of `words`, which may be empty, behind the name `program`."""
    if shell == "bash":
        return shown(directory, "bash", "--norc", "-c", BASH, "-", str(FILES / "agentshim.bash"), program, *words)
    if shell == "zsh":
        return shown(directory, "zsh", "-f", "-c", ZSH, "-", str(FILES / "_agentshim"), program, *words)
    script = f"source {FILES}/agentshim.fish; complete -C '{program} {' '.join(words)}'"
    return [line.partition("\t")[0] for line in shown(directory, "fish", "--no-config", "-c", script)]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells(shell: str, directory: Path) -> None:
    assert set(ask(shell, directory, "")) >= {verb for verb in argv.OURS if verb not in complete.HIDDEN}
    assert ask(shell, directory, "poli") == ["policy"]
    assert ask(shell, directory, "policy", "show", "lo") == ["locked"]
    assert ask(shell, directory, "explain", "--po") == ["--policy"]
    assert ask(shell, directory, "no-such-verb", "") == []
    assert [one.replace("\\ ", " ") for one in ask(shell, directory, "policy", "lint", "")] == ["a file.toml"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_attack_a_program_of_our_name_here(shell: str, directory: Path) -> None:
    """./agentshim in somebody's directory: a key press must not run it."""
    bad = directory / "here/agentshim"
    bad.write_text(f"#!/bin/sh\ntouch {directory}/ran\n")
    bad.chmod(0o755)
    shown_words = ask(shell, directory, "poli", program="./agentshim")
    assert not (directory / "ran").exists()
    assert shown_words == ["policy"]


def test_attack_candidates_that_the_shell_would_run(directory: Path) -> None:
    """bash puts a candidate on the line as it is: what it means there must be the candidate itself."""
    candidates = ["$(touch ran)", "`touch ran`", "a;touch ran", "a b", "'", "~root", "plain", "!!"]
    (directory / "bin/agentshim").unlink()
    (directory / "bin/agentshim").write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(candidates) + "\nEND\n")
    (directory / "bin/agentshim").chmod(0o755)
    for word in ask("bash", directory, ""):
        assert shown(directory, "bash", "--norc", "-c", f"printf '%s\\n' {word}") == [candidates.pop(0)]
    assert not candidates and not (directory / "here/ran").exists()


@pytest.mark.parametrize("answers", [":files", ":files\nab12"])
def test_bash_types_file_names_quoted(answers: str, directory: Path) -> None:
    """On a terminal, with a key: bash's own quoting of file names, once."""
    (directory / "here/a file.toml").unlink()
    (directory / "here/x $(touch ran)").touch()
    (directory / "bin/agentshim").unlink()
    (directory / "bin/agentshim").write_text(
        f"#!/bin/sh\ncase $1 in complete) echo '{answers}' | grep -v ab12 ;; esac\n"
    )
    (directory / "bin/agentshim").chmod(0o755)
    script = f"""
import os, pty, sys, time
pid, fd = pty.fork()
if not pid:
    os.execvp("bash", ["bash", "--norc", "-i"])
def send(text, wait=0.5):
    os.write(fd, text.encode()); time.sleep(wait)
send("bind 'set enable-bracketed-paste off'; source {FILES}/agentshim.bash\\n")
send("agentshim policy lint x\\t")
send("\\x01printf '%s|' \\x05\\n")
os.write(fd, b"exit\\n")
out = b""
try:
    while one := os.read(fd, 4096):
        out += one
except OSError:
    pass
sys.stdout.write(out.decode(errors="replace"))
"""
    out = "\n".join(shown(directory, "python3", "-c", script))
    assert "agentshim|policy|lint|x $(touch ran)|" in out, out
    assert not (directory / "here/ran").exists()


def test_bash_by_itself_finds_the_function(directory: Path) -> None:
    script = f"source {FILES}/agentshim.bash; complete -p agentshim"
    assert shown(directory, "bash", "--norc", "-c", script) == ["complete -F _agentshim agentshim"]


def test_they_are_installed() -> None:
    """`make install` puts each where its shell looks, and `make uninstall` takes it away."""
    made = (REPOSITORY / "Makefile").read_text()
    for file in FILES.iterdir():
        assert f"install -D -m 644 shim/completions/{file.name} " in made
    for variable, place in (
        ("BASH_COMPLETION", "share/bash-completion/completions/agentshim"),
        ("ZSH_COMPLETION", "share/zsh/site-functions/_agentshim"),
        ("FISH_COMPLETION", "share/fish/vendor_completions.d/agentshim.fish"),
    ):
        assert f"{variable} := {place}\n" in made and made.count(f"$({variable})") == 2
