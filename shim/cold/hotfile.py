"""Makes what a start loads in place of sources, at build and install: `shim/main.pyc` and `shim/hot`.

    python -I -S -X no_debug_ranges shim/cold/hotfile.py [LIBDIR]

Both are trusted like any source beside them: the same directory, root's alone. They must be made by the interpreter
that will read them. `main.pyc` says which one that was, and of which main.py, in a place of its head that Python skips
where it runs a script: the launcher compares.
`hot` holds, for each verb, the size and mtime of every source and their code, so that an edit is never shadowed.
"""

from __future__ import annotations
import __future__

import ast
import importlib
import marshal
import os
import struct
import sys
from importlib.machinery import ModuleSpec
from importlib.util import MAGIC_NUMBER, find_spec
from pathlib import Path
from types import CodeType, ModuleType

START = 8  # characters of the head's length, in decimal
# The verb, as a call spells it, and the module that decides it; '' is any other call. The last three are no words of a
# call: what `create` needs for a network of ours, for one whose plan is made anew, and for one with names.
VERBS = {
    "create": "shim.verbs.create",
    "run": "shim.verbs.create",
    "restore": "shim.verbs.create",
    "exec": "shim.verbs.execute",
    "update": "shim.verbs.update",
    "hook": "shim.verbs.hook",
    "": "shim.verbs.passed",
    "\0link": "shim.verbs.link",
    "\0steps": "shim.verbs.steps",
    "\0names": "shim.names",
}
LATE = ("\0link", "\0steps", "\0names")  # loaded beside `create`: without its modules
PACKAGES = ("shim", "hooks")
# Of the interpreter's own, some builds have this one in a file: found here, its place need not be searched for.
EXTENSIONS = ("_json",)
Module = tuple[str, str, bool, CodeType | None]


class Recorder:
    """Imports what lies below `libdir` from its sources, and notes each module when all that it imports is there."""

    def __init__(self, libdir: Path) -> None:
        self.libdir = libdir
        self.loaded: list[Module] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        folder = self.libdir.joinpath(*name.split("."))
        package = folder.is_dir()
        source = folder / "__init__.py" if package else folder.with_suffix(".py")
        if name.partition(".")[0] not in PACKAGES or not source.is_file():
            return None
        spec = ModuleSpec(name, self, origin=str(source), is_package=package)  # type: ignore[arg-type]
        spec.has_location = True  # __file__, which modules look beside
        return spec

    def create_module(self, spec: object) -> None:
        return None  # the import system makes it

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None and module.__spec__.origin is not None
        source = Path(module.__spec__.origin)
        inside = str(source.relative_to(self.libdir))
        code = compiled(source, inside)
        exec(code, module.__dict__)
        self.loaded.append((module.__name__, inside, source.name == "__init__.py", code))


def compiled(source: Path, name: str) -> CodeType:
    """Without the import of __future__, which costs 0.1 ms, but with what it asks for; and without annotations."""
    tree = ast.parse(source.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")]
    flags = __future__.annotations.compiler_flag
    code: CodeType = compile(tree, name, "exec", flags, dont_inherit=True, optimize=2)
    return code


def imported(libdir: Path, top: str) -> tuple[Module, ...]:
    """All that the module `top` imports at once, each after what itself imports."""
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]
    recorder = Recorder(libdir)
    sys.meta_path.insert(0, recorder)
    try:
        for name in ("shim.cli", top):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(recorder)
    specs = [find_spec(name) for name in EXTENSIONS if name not in sys.builtin_module_names]
    return (*((spec.name, spec.origin, False, None) for spec in specs if spec and spec.origin), *recorder.loaded)


def make(libdir: Path) -> None:
    """Writes `libdir`/shim/hot and main.pyc, each whole or not at all."""
    groups: dict[str, bytes] = {}
    late = {VERBS[name] for name in LATE}
    for top in dict.fromkeys(VERBS.values()):
        beside = {name for name, *_ in imported(libdir, VERBS["create"])} if top in late else set()
        modules = tuple(one for one in imported(libdir, top) if one[0] not in beside)
        paths = ["shim/main.py", *(path for _, path, _, code in modules if code)]
        stats = [(path, (libdir / path).stat()) for path in paths]
        sources = [(path, there.st_size, there.st_mtime_ns) for path, there in stats]
        groups[top] = marshal.dumps((sources, modules))
    # Places have one width in the head, so that its size does not change with them.
    size = len(head(groups, 1 << 30))
    replace(libdir / "shim/hot", b"%*d" % (START, size) + head(groups, START + size) + b"".join(groups.values()))

    source = libdir / "shim/main.py"
    python = os.stat(sys.executable)
    words = (int(source.stat().st_mtime), int(python.st_mtime), python.st_size)
    stamp = struct.pack("=III", *(word & 0xFFFFFFFF for word in words))
    replace(source.with_suffix(".pyc"), MAGIC_NUMBER + stamp + marshal.dumps(compiled(source, "shim/main.py")))


def head(groups: dict[str, bytes], begin: int) -> bytes:
    """The file's table, where the groups begin at `begin`."""
    places = {}
    for name, group in groups.items():
        places[name] = (begin, len(group))
        begin += len(group)
    return marshal.dumps((sys.version, {word: places[name] for word, name in VERBS.items()}), 1)  # 1: nothing shared


def replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.chmod(0o644)
    part.replace(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
