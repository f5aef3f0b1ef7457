"""What is built and shipped: the wheel's layout, the audit sheet, the size of the C, an installation that runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from native import build

SOURCES = sorted(build.NATIVE.glob("*.c"))


def test_the_c_is_small_enough_to_audit() -> None:
    assert sum(len(source.read_text().splitlines()) for source in SOURCES) <= build.MOST_LINES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_every_c_function_has_its_line_in_the_audit_sheet(source: Path) -> None:
    functions = re.findall(r"^[a-z_][^;={}#\n]*?\b\*?(\w+)\([^;]*?\)\s*\{", source.read_text(), re.MULTILINE)
    sheet = re.findall(
        rf"^\| `{re.escape(source.name)}` \| `(\w+)` \| \S", (build.NATIVE / "README.md").read_text(), re.M
    )
    assert functions
    assert sheet == functions


def test_every_warning_is_an_error() -> None:
    for flag in ("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Wformat=2"):
        assert flag in build.WARN


def test_the_c_passes_the_analyzers() -> None:
    build.analyze()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree by hatchling itself, with no network."""
    base = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "*.so", "dist", "tests", "conformance")
    tree = shutil.copytree(build.ROOT, base / "tree", ignore=ignore)
    if not (tree / "README.md").exists():
        (tree / "README.md").write_text("")
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", base / "dist"]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    return next((base / "dist").iterdir())


def test_wheel_tag(wheel: Path) -> None:
    assert re.fullmatch(r"agentshim-[\d.]+-cp311-abi3-linux_\w+\.whl", wheel.name)


def test_wheel_keeps_to_its_private_directory(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = [name.split(".data/", 1)[1] for name in names if ".data/" in name]
    assert "scripts/agentshim" in data
    assert {"data/lib/agentshim/shim/main.py", "data/lib/agentshim/shim/_sys.abi3.so"} <= set(data)
    assert all(name == "scripts/agentshim" or name.startswith("data/lib/agentshim/") for name in data), data
    assert all(".data/" in name or ".dist-info/" in name for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".new"))]


def test_wheel_installed_in_a_virtual_environment_finds_its_python(wheel: Path, tmp_path: Path) -> None:
    """The launcher takes PREFIX/bin/python3, and our code runs under it, without site, beside its own directory."""
    if os.geteuid() != 0:
        pytest.skip("the launcher trusts files of root's only: run as root")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip: list[str | Path] = [
        venv / "bin" / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--disable-pip-version-check",
        wheel,
    ]
    subprocess.run(pip, check=True)
    (venv / "lib" / "agentshim" / "shim" / "main.py").write_text(
        "import sys; print(sys.executable, sys.flags, sys.argv)"
    )
    done = subprocess.run([venv / "bin" / "agentshim", "create"], capture_output=True, text=True, check=True, env={})
    assert done.stdout.startswith(f"{venv}/bin/python3 ")
    assert "isolated=1" in done.stdout
    assert "no_site=1" in done.stdout
    assert "dont_write_bytecode=1" in done.stdout
    assert f"{venv}/lib/agentshim/shim/main.py" in done.stdout


def test_no_step_writes_beside_a_launcher_in_use(tmp_path: Path) -> None:
    """A rebuild replaces the file: a process that runs the old one, or is about to, sees one of the two whole."""
    out = tmp_path / "agentshim"
    build.build_launcher(out)
    with open(out, "rb") as old:
        build.build_launcher(out)
        assert os.fstat(old.fileno()).st_nlink == 0
    assert [path.name for path in tmp_path.iterdir()] == ["agentshim"]


def test_make_install(tmp_path: Path) -> None:
    """Twice, as an upgrade does: what is installed runs, is root's, and its byte code needs no clock."""
    if not list((build.ROOT / ".venv").glob("made-for-*")) or os.geteuid() != 0:
        pytest.skip("needs root and the environment of `make build`")
    make = ["make", "-s", "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/shim"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for _ in range(2):
        subprocess.run(make, cwd=build.ROOT, env=env, check=True, capture_output=True)
    prefix = tmp_path / "opt" / "shim"
    assert sorted(path.name for path in (prefix / "lib").iterdir()) == ["agentshim"]
    assert [path.name for path in (prefix / "bin").iterdir()] == ["agentshim"]
    sources = sorted((prefix / "lib" / "agentshim" / "shim").rglob("*.py"))
    assert sources
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "not an unchecked hash"
    for path in prefix.rglob("*"):
        st = path.stat()
        assert st.st_uid == 0
        assert not st.st_mode & 0o022
    (prefix / "lib" / "agentshim" / "shim" / "main.py").write_text("import sys; print(sys.argv[3:])")
    done = subprocess.run([prefix / "bin" / "agentshim", "create"], capture_output=True, text=True, check=True, env={})
    assert done.stdout.endswith("'create']\n")


def made(target: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`make TARGET`, without what it depends on."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-s", "-o", "build", target, "PREFIX=/opt/shim", *words]
    return subprocess.run(command, cwd=build.ROOT, env=env, capture_output=True, text=True, check=False)


def test_make_install_after_a_crash_between_its_two_moves(tmp_path: Path) -> None:
    """The tree that was set aside is the only whole one: it must be there even if this install fails too."""
    old = tmp_path / "opt/shim/lib/agentshim.old"
    old.mkdir(parents=True)
    (old / "whole").touch()
    (old.parent / "agentshim.new").mkdir()
    assert made("install", f"DESTDIR={tmp_path}", "RUN=false").returncode != 0
    assert sorted(str(one.relative_to(old.parent)) for one in old.parent.rglob("whole")) == ["agentshim/whole"]


@pytest.mark.parametrize(
    "file",
    [
        "docker/daemon.json",
        "containerd/config.toml",
        "containerd/conf.d/agentshim.toml",
        "containers/containers.conf",
        "containers/containers.conf.d/agentshim.conf",
        "crio/crio.conf.d/agentshim.conf",
    ],
)
def test_make_uninstall_while_an_engine_names_us(file: str, tmp_path: Path) -> None:
    """Refused, and nothing is gone; with FORCE=1 all is, also what a crash has left."""
    for name in (
        "bin/agentshim",
        "bin/.agentshim.new",
        "lib/agentshim/x",
        "lib/agentshim.new/x",
        "lib/agentshim.old/x",
    ):
        (tmp_path / "opt/shim" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "opt/shim" / name).touch()
    named = tmp_path / "etc" / file
    named.parent.mkdir(parents=True)
    named.write_text('{"path": "/opt/shim/bin/agentshim"}\n')
    before = sorted(tmp_path.rglob("*"))
    refused = made("uninstall", f"DESTDIR={tmp_path}")
    assert refused.returncode != 0 and str(named) in refused.stderr and "agentshim uninstall" in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before
    forced = made("uninstall", f"DESTDIR={tmp_path}", "FORCE=1")
    assert forced.returncode == 0 and str(named) in forced.stderr
    assert not [one for one in (tmp_path / "opt").rglob("*") if one.is_file()]


def test_make_uninstall_where_no_engine_names_us(tmp_path: Path) -> None:
    """The copy of before is no engine's file; where nothing is, nothing is said."""
    kept = tmp_path / "etc/containerd/config.toml.before-agentshim"
    kept.parent.mkdir(parents=True)
    kept.write_text("/opt/shim/bin/agentshim")
    (tmp_path / "opt/shim/bin").mkdir(parents=True)
    done = made("uninstall", f"DESTDIR={tmp_path}")
    assert (done.returncode, done.stderr) == (0, "")
