"""Where the launcher enters: `python -I -S main.pyc IGNORED EXECFN DELEGATE ARGUMENT…`.

Nothing is decided here. Our directory is put on the path (-I keeps a script's own off it), and the modules that a verb
wants come from one file, `hot`, as long as each source is as it was when the file was made: parsing this source (1.2
ms) and searching, opening and loading 42 modules one by one (3 ms) would come on top of every start otherwise.
`cold.hotfile` makes both files; without them, everything is imported as usual.
"""

from __future__ import annotations

import _imp
import gc
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    # Name, path below HOME, whether a package, code; no code: an extension module of the interpreter's, at that path.
    Modules = tuple[tuple[str, str, bool, CodeType | None], ...]

HOME = __file__.rpartition("/shim/")[0]
WRITABLE_BY_OTHERS = 0o022
brought: list[str] = []  # groups of `late`


class Changed(Exception):
    """A source is not the one that `hot` was made of."""


def hot(words: list[str]) -> Modules:
    """What the verb among `words` imports, in the order of its imports; nothing if `hot` is absent, torn, of another
    Python, or older than a source. A word that is taken for the verb by mistake costs time, nothing else.
    """
    try:
        fd = posix.open(f"{HOME}/shim/hot", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            size = int(posix.read(fd, 8))
            version, verbs = marshal.loads(posix.read(fd, size))
            if version != sys.version:
                return ()
            place, size = next((verbs[word] for word in words if word in verbs), verbs[""])
            modules: Modules
            sources, modules = marshal.loads(posix.pread(fd, size, place))
        finally:
            posix.close(fd)
        owner = posix.stat(f"{HOME}/shim/main.py").st_uid  # whom the launcher has found to be root
        for source in sources:
            compare(owner, *source)
    except (OSError, ValueError, EOFError, TypeError, KeyError, Changed):
        return ()
    return modules


def compare(owner: int, path: str, size: int, changed: int) -> None:
    """Changed unless the source is as it was. The launcher has looked at our directory and this file, not at others."""
    there = posix.stat(f"{HOME}/{path}")
    if there.st_mode & WRITABLE_BY_OTHERS or there.st_uid != owner:
        sys.exit(f"main: {HOME}/{path}: asked others can write it, ceiling root's alone: install again, as root")
    if there.st_size != size or there.st_mtime_ns != changed:
        raise Changed


def load(modules: Modules) -> None:
    """Import `modules` without the import system; each finds the earlier ones where that system would put them."""
    kind, spec = type(sys), type(sys.__spec__)
    loaded = sys.modules
    for name, path, package, code in modules:
        if name in loaded:
            continue
        if code is None:
            loaded[name] = extension = _imp.create_dynamic(spec(name, None, origin=path))
            _imp.exec_dynamic(extension)
            continue
        module = kind(name)
        module.__file__ = f"{HOME}/{path}"
        if package:
            module.__path__ = [module.__file__.rpartition("/")[0]]
        loaded[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(loaded[parent], own, module)
        exec(code, module.__dict__)


def late(group: str) -> None:
    """What only some calls of a verb import, when it turns out that this one does; a second time it costs nothing."""
    if group not in brought:
        brought.append(group)
        load(hot([f"\0{group}"]))  # no word of a call's


if __name__ == "__main__":
    gc.disable()  # a decision lives for milliseconds: collecting costs one of them and frees nothing
    sys.path.append(HOME)
    try:
        load(hot(sys.argv[4:]))
        from shim.cli import main
    except (OSError, ImportError) as error:  # too few descriptors, a failing disk: a traceback would be the container's
        sys.stderr.write(
            f"main: {HOME}: asked {type(error).__name__} {getattr(error, 'errno', None) or ''}, "
            "ceiling modules that load: mend what fails, then call again; nothing was run\n"
        )
        sys.exit(255 if "exec" in sys.argv[4:] else 1)

    sys.exit(main(sys.argv[1:]))
