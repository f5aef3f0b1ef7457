"""Who may import whom, and what a container's start may load: read from the source and from a real interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SHIM = REPOSITORY / "shim"
MODULES = sorted(path for path in SHIM.rglob("*.py") if "cold" not in path.parts)
# Beside C built-ins and siblings, hot code may import these at its top: they cost nothing or are there already.
ALLOWED = {
    "__future__",
    "_blake2",
    "_imp",
    "_json",
    "_sha256",
    "_signal",
    "_stat",
    "errno",
    "fcntl",
    "gc",
    "marshal",
    "posix",
    "sys",
    "time",
}
# package -> what of shim it must not import at all, late or not.
FORBIDDEN = {
    "dim": {"bundle", "cli", "kernel", "plan", "policy", "product", "runc", "state", "verbs", "cold"},
    "seccomp": {"bundle", "cli", "kernel", "plan", "policy", "product", "runc", "state", "verbs", "cold", "dim"},
    "plan.py": {"bundle", "cli", "kernel", "policy", "runc", "state", "verbs", "cold", "hostpaths"},
    "product.py": {"bundle", "cli", "kernel", "plan", "policy", "runc", "state", "verbs", "cold"},
    "coherence.py": {"bundle", "cli", "kernel", "plan", "policy", "runc", "state", "verbs", "cold"},
    "lattice.py": {"bundle", "cli", "kernel", "plan", "policy", "runc", "state", "verbs", "cold", "dim"},
}
# What only some starts load, late, and whole
LATE = {"verbs/link.py": {"hooks"}, "verbs/steps.py": {"hooks"}}
# What a start loads beyond what the interpreter loads by itself (-I -S). A line more here is milliseconds for all.
OWN_START = {"__future__", "_blake2", "_json", "_stat", "errno", "fcntl", "gc"}


def imports(path: Path, *, top_only: bool) -> set[str]:
    """Dotted names that a module imports, type-checking blocks left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.FunctionDef) and top_only:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SHIM)))
def test_hot_modules_import_only_cheap_ones(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports(path, top_only=True)} - {"shim"}
    assert roots <= ALLOWED | LATE.get(str(path.relative_to(SHIM)), set())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SHIM)))
def test_direction(path: Path) -> None:
    where = path.relative_to(SHIM).parts[0]
    rooms = {name.split(".")[1] for name in imports(path, top_only=False) if name.startswith("shim.")}
    assert not rooms & FORBIDDEN.get(where, set())


@pytest.mark.parametrize("path", sorted((SHIM / "dim").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_dimensions_do_not_know_each_other(path: Path) -> None:
    assert not [name for name in imports(path, top_only=False) if name.startswith("shim.dim.")]


@pytest.mark.parametrize("path", sorted((SHIM / "dim").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_dimensions_do_no_io(path: Path) -> None:
    """uname is the one question that a dimension may ask: the machine is a constant."""
    assert not {name.partition(".")[0] for name in imports(path, top_only=False)} & {"os", "io", "socket", "fcntl"}
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    assert {call.attr for call in calls if isinstance(call.value, ast.Name) and call.value.id == "posix"} <= {"uname"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SHIM)))
def test_nobody_imports_cold_at_the_top(path: Path) -> None:
    assert not [name for name in imports(path, top_only=True) if name.startswith("shim.cold")]


@pytest.mark.parametrize("verb", ["create", "execute", "update", "passed"])
def test_what_a_verb_loads(verb: str) -> None:
    code = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); "
        f"import shim.cli; from shim.verbs import {verb}; "
        "print(*sorted(name for name in set(sys.modules) - before if name.split('.')[0] != 'shim'))"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) - {"os.path"} <= OWN_START
