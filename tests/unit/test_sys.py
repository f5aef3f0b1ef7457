"""The cffi module and the way to the packages that only cold paths need."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from native import build
from shim.cold import site
from shim.errors import HostError


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh build of shim._sys, so that the test is of this source."""
    return build.build_module(tmp_path_factory.mktemp("sys") / "_sys.abi3.so")


def ask(module: Path, expression: str, *prelude: str) -> str:
    """Evaluate `expression` on the module's `lib` in a process of its own."""
    code = "\n".join(
        [
            "import importlib.util, os, signal, sys",
            f"found = importlib.util.spec_from_file_location('shim._sys', {str(module)!r})",
            "module = importlib.util.module_from_spec(found)",
            "found.loader.exec_module(module)",
            "lib = module.lib",
            *prelude,
            f"print({expression})",
        ]
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_ptrace_says_what_the_kernel_says(module: Path) -> None:
    null = "module.ffi.NULL"
    assert ask(module, f"lib.shim_ptrace(0x4206, 0x7fffffff, 0, {null})") == str(-errno.ESRCH)
    assert ask(module, f"lib.shim_ptrace(0x7777, os.getppid(), 0, {null})") in (str(-errno.EIO), str(-errno.ESRCH))


def test_ptrace_seizes_and_lets_go(module: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: another process may not be traced everywhere")
    with subprocess.Popen(["/bin/sleep", "60"]) as sleeper:
        seized = f"[lib.shim_ptrace(r, {sleeper.pid}, 0, module.ffi.NULL) for r in (0x4206, 0x4207)]"
        calls = f"{seized}, os.waitpid({sleeper.pid}, 0x40000000)[0]"
        assert ask(module, calls) == f"[0, 0] {sleeper.pid}"
        sleeper.kill()


def test_the_stub_names_what_the_module_has() -> None:
    """mypy reads shim/_sys.pyi; a function that is in the cdef and not there, or the other way round, is a lie."""
    declared = {line.split("(")[0].split()[-1] for line in (build.NATIVE / "sys.cdef").read_text().splitlines()}
    stub = (build.ROOT / "shim" / "_sys.pyi").read_text()
    assert declared == {line.split("def ")[1].split("(")[0] for line in stub.splitlines() if "def shim_" in line}


def test_one_module_for_every_later_python(module: Path) -> None:
    names = subprocess.run(["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True).stdout
    assert "Py" in names
    assert "_Py_" not in names.replace("_Py_Dealloc", "").replace("_Py_NoneStruct", "")


# --- shim/cold/site.py ----------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An install directory that site.py takes for its own."""
    libdir = tmp_path / "lib" / "agentshim"
    libdir.mkdir(parents=True)
    monkeypatch.setattr(site, "LIBDIR", str(libdir))
    monkeypatch.setattr(sys, "path", ["/first"])
    return libdir


def test_nothing_recorded(installed: Path) -> None:
    assert site.enable() is None
    assert sys.path == ["/first"]


def test_recorded_directory_comes_last_and_once(installed: Path) -> None:
    packages = installed / "site-packages"
    packages.mkdir()
    build.record(installed, "site", str(packages))
    assert [site.enable(), site.enable()] == [str(packages)] * 2
    assert sys.path == ["/first", str(packages)]


def test_the_development_trees_record_wins(installed: Path) -> None:
    (installed / "native" / "build").mkdir(parents=True)
    build.record(installed, "site", "/absent")
    build.record(installed / "native" / "build", "site", str(installed))
    assert site.enable() == str(installed)


def test_a_wheels_own_prefix(installed: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = installed.parent / version / "site-packages"
    packages.mkdir(parents=True)
    assert site.enable() == str(packages)


@pytest.mark.parametrize("which", ["record", "directory"])
@pytest.mark.parametrize("harm", ["writable", "owner"])
def test_what_others_could_write_is_not_used(installed: Path, which: str, harm: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    packages = installed / "site-packages"
    packages.mkdir()
    build.record(installed, "site", str(packages))
    path = packages if which == "directory" else installed / "site"
    path.chmod(0o777) if harm == "writable" else os.chown(path, 1, 1)
    with pytest.raises(HostError, match=r"site: .*: asked owner"):
        site.enable()
    assert sys.path == ["/first"]


def test_recorded_directory_that_is_gone(installed: Path) -> None:
    build.record(installed, "site", str(installed / "gone"))
    with pytest.raises(HostError, match="make install"):
        site.enable()
