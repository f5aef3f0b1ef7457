"""Makes the file `hot` that `shim/main.py` loads all modules of a container's start from, at build and install.

    python -I -S shim/cold/hotfile.py [LIBDIR]

It is trusted like any source beside it: the same directory, root's alone. It must be made by the interpreter that will
read it, and holds the size and mtime of every source, so that an edit is never shadowed.
"""

from __future__ import annotations

import marshal
import os
import sys
from pathlib import Path

START = 8  # characters of the head's length, in decimal


def make(libdir: Path) -> Path:
    """Writes `libdir`/shim/hot, whole or not at all; its path."""
    sources: list[tuple[str, int, int]] = []
    modules: dict[str, tuple[bool, str, int, int]] = {}
    codes: list[bytes] = []
    end = 0
    for path in sorted((libdir / "shim").rglob("*.py")):
        inside = path.relative_to(libdir)
        if "cold" in inside.parts or inside.name == "main.py":
            continue
        there = path.stat()
        names = inside.with_suffix("").parts
        package = names[-1] == "__init__"
        code = marshal.dumps(compile(path.read_bytes(), str(inside), "exec", dont_inherit=True, optimize=2))
        sources.append((str(inside), there.st_size, there.st_mtime_ns))
        modules[".".join(names[:-1] if package else names)] = (package, str(inside), end, len(code))
        codes.append(code)
        end += len(code)
    out = libdir / "shim" / "hot"
    part = out.with_name(f".hot.{os.getpid()}")
    head = marshal.dumps((sys.version, sources, placed(modules, START + 1 << 20)))
    # Offsets are numbers of one width in marshal, so that the head's size does not change with them.
    head = marshal.dumps((sys.version, sources, placed(modules, START + len(head))))
    part.write_bytes(b"%*d" % (START, len(head)) + head + b"".join(codes))
    part.chmod(0o644)
    part.replace(out)
    return out


def placed(modules: dict[str, tuple[bool, str, int, int]], start: int) -> dict[str, tuple[bool, str, int, int]]:
    """`modules` with offsets from the file's beginning, where the codes begin at `start`."""
    return {name: (package, path, start + offset, size) for name, (package, path, offset, size) in modules.items()}


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
