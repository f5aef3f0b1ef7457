"""The images of the suite, made from the host's own Debian packages: busybox, Python and Node.

Belongs here: root file systems as tar archives. Next door: `harness` imports them into each engine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

BUSYBOX = "/bin/busybox"
DIRECTORIES = ("bin", "dev", "etc", "home/app", "mnt", "proc", "root", "sys", "tmp", "usr/bin", "var", "work")
PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nnogroup:x:65534:\n"
PYTHON_LIB = "/usr/lib/python3.11"
WITHOUT = re.compile(r"/(__pycache__|test|tests|idlelib|tkinter|ensurepip|lib2to3|dist-packages|config-[^/]*)(/|$)")


def missing(name: str) -> str:
    """Why the image `name` cannot be made on this host, or an empty string."""
    needed = {"busybox": BUSYBOX, "python": "/usr/bin/python3.11", "node": "/usr/bin/node"}[name]
    if not os.access(BUSYBOX, os.X_OK) or subprocess.run(["ldd", BUSYBOX], capture_output=True).returncode == 0:
        return f"{BUSYBOX} is missing or not static: install the package busybox-static"
    return "" if os.access(needed, os.X_OK) else f"{needed} is missing"


def build(name: str, target: Path, applets: Iterable[str] = ()) -> Path:
    """Write the root file system `name` to `target` as a tar archive; with `applets`, only these names of busybox."""
    with tarfile.open(target, "w") as tar:
        _base(tar, applets)
        if name == "python":
            _python(tar)
        elif name == "node":
            _program(tar, "/usr/bin/node")
    return target


def archive(name: str, tar: Path, target: Path) -> Path:
    """The root file system `tar` as an image that docker, podman and ctr load: localhost/asc-<name>:latest."""
    digest = hashlib.sha256(tar.read_bytes()).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [f"localhost/asc-{name}:latest"], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as out:
        out.add(tar, "layer.tar")
        _file(out, "config.json", json.dumps(config))
        _file(out, "manifest.json", json.dumps(manifest))
    return target


def unpack(tar: Path, target: Path) -> Path:
    """`tar` as a directory: a root file system for bundles without an engine."""
    target.mkdir(mode=0o755)
    subprocess.run(["tar", "-C", str(target), "-xf", str(tar)], check=True)
    return target


def _base(tar: tarfile.TarFile, applets: Iterable[str]) -> None:
    """busybox under all its names, two users, and the directories that images have."""
    for name in DIRECTORIES:
        _directory(tar, name, 0o1777 if name == "tmp" else 0o755, 1000 if name == "home/app" else 0)
    tar.add(os.path.realpath(BUSYBOX), "bin/busybox")
    for applet in applets or subprocess.check_output([BUSYBOX, "--list"], text=True).split():
        if applet != "busybox":
            _link(tar, f"bin/{applet}", "busybox")
    _file(tar, "etc/passwd", PASSWD)
    _file(tar, "etc/group", GROUP)
    _file(tar, "etc/not-a-program", "text\n")


def _python(tar: tarfile.TarFile) -> None:
    """Debian's Python and its standard library."""
    _program(tar, "/usr/bin/python3.11")
    _link(tar, "usr/bin/python3", "python3.11")
    for path in sorted(Path(PYTHON_LIB).rglob("*")):
        if not WITHOUT.search(str(path)) and path.exists():
            tar.add(str(path), str(path)[1:], recursive=False)
    _libraries(tar, [str(path) for path in Path(PYTHON_LIB, "lib-dynload").glob("*.so")])


def _program(tar: tarfile.TarFile, path: str) -> None:
    """One executable with the shared libraries that it loads."""
    tar.add(os.path.realpath(path), path[1:])
    _libraries(tar, [path])


def _libraries(tar: tarfile.TarFile, paths: Iterable[str]) -> None:
    """What ldd(1) says that `paths` load, each once, dereferenced, where the loader looks for it."""
    listing = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False).stdout
    have = set(tar.getnames())
    for library in sorted(set(re.findall(r"(/\S+) \(0x", listing))):
        if library[1:] not in have:
            tar.add(os.path.realpath(library), library[1:])


def _directory(tar: tarfile.TarFile, name: str, mode: int, owner: int) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
    tar.addfile(info)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    tar.addfile(info)


def _file(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o644
    tar.addfile(info, io.BytesIO(text.encode()))


def tool(name: str) -> str:
    """The absolute path of a tool in the system's directories (not the caller's PATH), or an empty string."""
    return shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or ""
