"""Builds what is C: the launcher `agentshim`, the hook `agentshim-net` and the cffi module `shim._sys`.

Belongs here: compiler flags, and where the results go. Next door: Makefile installs them, pyproject.toml names this
file as hatchling's build hook for the wheel. Run by itself (`python native/build.py`) it builds for the development
tree; `--launcher` builds the executables alone: the module needs cffi and Python's headers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parent
BUILD = NATIVE / "build"
MODULE = ROOT / "shim" / "_sys.abi3.so"
NETHOOK = "agentshim-net"  # in the private directory, beside shim/ and hooks/: nobody calls it by hand

WARN = [
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wshadow",
    "-Wconversion",
    "-Wstrict-prototypes",
    "-Wformat=2",
]
HARDEN = ["-std=gnu11", "-fstack-protector-strong", "-Wl,-z,noexecstack"]

# Paid on each call of an engine. Measured over the exec of /bin/true, itself 630 µs: with musl and no relocations
# 48 µs, as static-pie 123 µs, with glibc static 570 µs, dynamic 640 µs. It reads only arguments and root's files.
LAUNCHER = ["-Os", "-static", "-fno-pie", "-no-pie", "-s"]
# musl has no kernel headers. They come last, so that nothing of glibc's stands in for one of musl's own.
KERNEL = ["-idirafter", "/usr/include", "-idirafter", f"/usr/include/{platform.machine()}-linux-gnu"]
OBJECT = ["-O2", "-D_FORTIFY_SOURCE=2", "-fPIC"]
SHARED = [*OBJECT, "-shared", "-Wl,-z,relro", "-Wl,-z,now"]
LIMITED_API = "-DPy_LIMITED_API=0x030b0000"  # 3.11: one module for every later Python

# What one person can audit in a sitting: the launcher, and the hook, which shares no line with it and holds authority
# that Python must not have.
MOST_LINES = 1150

PYTHONS = ("/usr/bin/python3", sys.executable)


def run(command: Sequence[str | Path]) -> None:
    """Run a compiler; its messages go to stderr, its failure ends the build."""
    subprocess.run([str(word) for word in command], check=True)


def static_cc() -> str:
    """The compiler of static executables: $STATIC_CC, musl's where it is installed, else $CC or cc."""
    return os.environ.get("STATIC_CC") or shutil.which("musl-gcc") or cc()


def cc() -> str:
    return os.environ.get("CC", "cc")


def build_static(out: Path, source: str, extra: Sequence[str] = (), static: bool = True) -> Path:
    """Compile native/`source` to `out`; tests add `extra` flags, and sanitizers need it not to be `static`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    how = [static_cc(), *LAUNCHER, *KERNEL] if static else [cc(), "-g"]
    replace(out, lambda new: run([*how, *WARN, *HARDEN, *extra, "-o", new, NATIVE / source]))
    return out


def build_launcher(out: Path, extra: Sequence[str] = (), static: bool = True) -> Path:
    return build_static(out, "launcher.c", extra, static)


def build_nethook(out: Path, extra: Sequence[str] = (), static: bool = True) -> Path:
    return build_static(out, "nethook.c", extra, static)


def build_module(out: Path = MODULE) -> Path:
    """Compile `shim._sys` to `out`. Our C under all warnings; cffi's glue, which is generated, under none."""
    from cffi import FFI  # late: --launcher must work where cffi is not installed

    cdef = (NATIVE / "sys.cdef").read_text()
    ffi = FFI()
    ffi.cdef(cdef)
    ffi.set_source("shim._sys", "#include <stdint.h>\n" + cdef)
    include = "-I" + sysconfig.get_path("include")
    with tempfile.TemporaryDirectory() as scratch:
        glue, ours = Path(scratch, "glue.c"), Path(scratch, "sys.o")
        with contextlib.redirect_stdout(None):
            ffi.emit_c_code(str(glue))
        run([cc(), *WARN, *HARDEN, *OBJECT, "-c", "-o", ours, NATIVE / "sys.c"])
        replace(out, lambda new: run([cc(), *HARDEN, *SHARED, LIMITED_API, include, "-o", new, glue, ours]))
    return out


def replace(out: Path, make: Callable[[Path], None]) -> None:
    """Let `make` write beside `out`, then rename: a launcher in use is never written over."""
    new = out.with_name(out.name + ".new")
    make(new)
    new.replace(out)


def payload() -> list[str]:
    """What is installed in the private directory, relative to the tree: shim/ and hooks/ less what building leaves."""
    files = [path for top in ("shim", "hooks") for path in sorted((ROOT / top).rglob("*")) if path.is_file()]
    kept = [path for path in files if path.suffix not in (".pyc", ".pyi", ".new")]
    return [str(path.relative_to(ROOT)) for path in kept]


def analyze() -> None:
    """Every C file through gcc's analyzer, and through clang's warnings where it is installed."""
    sources = sorted(NATIVE.glob("*.c"))
    for source in sources:
        run(["gcc", *WARN, *HARDEN, "-O2", "-fanalyzer", "-c", "-o", os.devnull, source])
        if clang := shutil.which("clang"):
            run([clang, *WARN, "-std=gnu11", "-fsyntax-only", source])
    lines = sum(len(source.read_text().splitlines()) for source in sources)
    if lines > MOST_LINES:
        sys.exit(f"native: *.c: asked {lines} lines, ceiling {MOST_LINES}: move what is policy to Python")


def version_of(python: str) -> tuple[int, int]:
    """(major, minor) of an interpreter; (0, 0) where it does not run."""
    code = "import sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0, 0
    major, minor = done.stdout.split()
    return int(major), int(minor)


def record(directory: Path, name: str, value: str) -> None:
    """Write the one-line file `name` that the launcher or shim/cold/site.py reads. Readable by all, writable by us."""
    path = directory / name
    path.write_text(value + "\n")
    path.chmod(0o644)


def record_tree(python: str | None) -> None:
    """Name the development tree's interpreter, and the packages of the one that runs this if both are alike."""
    chosen = python or next((p for p in PYTHONS if version_of(p) >= (3, 11)), sys.executable)
    record(BUILD, "python", chosen)
    site = BUILD / "site"
    if version_of(chosen) == sys.version_info[:2] and sys.prefix != sys.base_prefix:
        record(BUILD, "site", sysconfig.get_path("purelib"))
    else:
        site.unlink(missing_ok=True)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # not building a wheel
    pass
else:

    class CustomBuildHook(BuildHookInterface[Any]):
        """hatchling's door: the launcher goes to the scripts, all else to one private directory."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name != "wheel":
                return
            launcher = build_launcher(BUILD / "agentshim")
            nethook = build_nethook(BUILD / NETHOOK)
            build_module()
            build_data["pure_python"] = False
            build_data["tag"] = f"cp311-abi3-linux_{platform.machine()}"
            build_data["shared_scripts"] = {str(launcher): "agentshim"}
            build_data["shared_data"] = {str(ROOT / path): f"lib/agentshim/{path}" for path in payload()}
            build_data["shared_data"][str(nethook)] = f"lib/agentshim/{NETHOOK}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the C parts for the development tree.")
    parser.add_argument("--launcher", action="store_true", help="the executables only: no cffi needed")
    parser.add_argument(
        "--python", help="the interpreter that the launcher starts (default: /usr/bin/python3 where it is >= 3.11)"
    )
    parser.add_argument("--analyze", action="store_true", help="check the C files, build nothing")
    parser.add_argument("--payload", action="store_true", help="list the files to install, build nothing")
    options = parser.parse_args()
    if options.payload:
        return print("\n".join(payload()))
    if options.analyze:
        return analyze()
    build_launcher(BUILD / "agentshim")
    build_nethook(BUILD / NETHOOK)
    if not options.launcher:
        build_module()
    record_tree(options.python)


if __name__ == "__main__":
    main()
