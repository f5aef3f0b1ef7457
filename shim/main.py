"""Where the launcher enters: `python -I -S main.py IGNORED EXECFN DELEGATE ARGUMENT…`.

Nothing is decided here. Our directory is put on the path (-I keeps a script's own off it), and the modules come from
one file, `hot`, as long as every source is as it was when the file was made: 45 modules searched for, opened and read
one by one cost 2 ms more at each start. `cold.hotfile` makes it; without it, everything is imported as usual.
"""

from __future__ import annotations

import gc
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    Modules = dict[str, tuple[bool, str, int, int]]

LIBDIR = __file__.rpartition("/shim/")[0]
SPEC: type[ModuleSpec] = type(sys.__spec__)  # without importing importlib


class Finder:
    """Loads what the file `hot` holds, open as `fd`: module -> (whether a package, path below LIBDIR, offset, size)."""

    def __init__(self, fd: int, modules: Modules) -> None:
        self.fd = fd
        self.modules = modules

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in self.modules:
            return None
        package, place, _, _ = self.modules[name]
        spec = SPEC(name, self, origin=f"{LIBDIR}/{place}", is_package=package)  # type: ignore[arg-type]
        if package:
            spec.submodule_search_locations = [f"{LIBDIR}/{place}".rpartition("/")[0]]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # the import system makes it

    def exec_module(self, module: ModuleType) -> None:
        _, path, offset, size = self.modules[module.__name__]
        module.__file__ = f"{LIBDIR}/{path}"
        exec(marshal.loads(posix.pread(self.fd, size, offset)), module.__dict__)


def hot() -> Finder:
    """A Finder for `hot`; an empty one if it is not there, of another Python, or older than a source."""
    try:
        fd = posix.open(f"{LIBDIR}/shim/hot", posix.O_RDONLY | posix.O_CLOEXEC)
        start = posix.read(fd, 8)
        version, sources, modules = marshal.loads(posix.read(fd, int(start)))
        if version == sys.version and all(same(*source) for source in sources):
            return Finder(fd, modules)
    except (OSError, ValueError, EOFError, TypeError):
        pass
    return Finder(-1, {})


def same(path: str, size: int, changed: int) -> bool:
    there = posix.stat(f"{LIBDIR}/{path}")
    return there.st_size == size and there.st_mtime_ns == changed


if __name__ == "__main__":
    gc.disable()  # a decision lives for milliseconds: collecting costs one of them and frees nothing
    sys.path.insert(0, LIBDIR)
    sys.meta_path.insert(0, hot())

    from shim.cli import main

    sys.exit(main(sys.argv[1:]))
