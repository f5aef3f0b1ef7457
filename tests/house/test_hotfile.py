"""The files that a start loads its modules from: never shadow an edit, never read by another Python, never needed."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TELL = "import sys; sys.stderr.write('edited\\n')\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package with a fresh hot file."""
    skipped = shutil.ignore_patterns("__pycache__", "hot", "main.pyc")
    for package in ("shim", "hooks"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=skipped)
    make(tmp_path)
    return tmp_path


def make(tree: Path) -> None:
    subprocess.run([sys.executable, "-I", "-S", str(tree / "shim/cold/hotfile.py")], check=True)


def start(tree: Path, *flags: str, verb: str = "create", script: str = "main.py") -> subprocess.CompletedProcess[str]:
    """A call that is refused before anything is touched."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-B",
        *flags,
        str(tree / "shim" / script),
        "0",
        "agentshim",
        "-",
        verb,
        "a/b",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def loaded(tree: Path, verb: str = "create") -> list[str]:
    """Modules that were imported the usual way."""
    told = start(tree, "-v", verb=verb).stderr
    return [line for line in told.splitlines() if "code object from" in line and "/shim/" in line]


def test_everything_comes_from_it(tree: Path) -> None:
    assert start(tree).stderr.startswith("argv: id: asked a/b")
    assert loaded(tree) == []


def test_cold_modules_are_found_beside_it(tree: Path) -> None:
    command = [sys.executable, "-I", "-S", "-B", str(tree / "shim/main.py"), "0", "agentshim", "-", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.stdout.startswith("agentshim: an OCI runtime")


def test_without_it_everything_is_imported(tree: Path) -> None:
    (tree / "shim/hot").unlink()
    assert start(tree).stderr.startswith("argv: id: asked a/b")
    assert len(loaded(tree)) > 30


def test_an_edit_is_never_shadowed(tree: Path) -> None:
    source = tree / "shim/plan.py"
    source.write_text(source.read_text() + TELL)
    assert start(tree).stderr.startswith("edited")


def test_an_edit_of_the_same_size_is_never_shadowed(tree: Path) -> None:
    source = tree / "shim/argv.py"
    before = source.stat()
    source.write_text(source.read_text().replace("otherwise", "elsewhere"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert len(loaded(tree)) > 30


@pytest.mark.parametrize("spoil", [b"", b"x", b"      99", b"      10" + b"\xff" * 10])
def test_a_torn_one_is_not_read(tree: Path, spoil: bytes) -> None:
    (tree / "shim/hot").write_bytes(spoil)
    assert start(tree).stderr.startswith("argv: id: asked a/b")


def test_one_of_another_python_is_not_read(tree: Path) -> None:
    file = tree / "shim/hot"
    version = sys.version.encode()
    data = file.read_bytes()
    assert version in data
    file.write_bytes(data.replace(version, b"2" + version[1:]))
    assert len(loaded(tree)) > 30


@pytest.mark.parametrize("verb", ["create", "run", "restore", "exec", "update", "hook", "state"])
def test_each_verb_has_its_own_modules(tree: Path, verb: str) -> None:
    assert loaded(tree, verb) == []


def test_a_source_that_others_can_write_is_not_trusted(tree: Path) -> None:
    (tree / "shim/plan.py").chmod(0o666)
    done = start(tree)
    assert (done.returncode, done.stderr.startswith("main: ")) == (1, True)


def test_main_is_run_from_byte_code_of_this_interpreter(tree: Path) -> None:
    """What the launcher compares: 3 words, of the source and of the interpreter that made it."""
    made = (tree / "shim/main.pyc").read_bytes()
    source, python = (tree / "shim/main.py").stat(), os.stat(sys.executable)
    words = (int(source.st_mtime), int(python.st_mtime), python.st_size)
    assert struct.unpack("=III", made[4:16]) == tuple(word & 0xFFFFFFFF for word in words)
    done = start(tree, script="main.pyc")
    assert done.stderr.startswith("argv: id: asked a/b")


@pytest.mark.parametrize("word", ["link", "steps", "names"])
def test_no_word_of_a_call_is_a_late_group(tree: Path, word: str) -> None:
    """It has none of what it is loaded beside."""
    told = start(tree, verb=word)
    assert "Traceback" not in told.stderr and loaded(tree, verb=word) == []
