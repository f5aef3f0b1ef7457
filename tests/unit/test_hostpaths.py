"""What a path of the host means, on real directories: no path of the host is changed by these tests."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from shim import hostpaths
from shim.hostpaths import Places

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: ownership of files cannot be set up")


def places(tmp_path: Path) -> Places:
    bundle = tmp_path / "bundle"
    (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
    return Places(str(bundle), str(bundle / "rootfs"))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "authority"),
        ("/proc", "authority"),
        ("/proc/1", "authority"),
        ("/sys/fs/cgroup", "authority"),
        ("/dev", "authority"),
        ("/etc", "authority"),
        ("/etc/passwd", "authority"),
        ("/root", "authority"),
        ("/var", "authority"),
        ("/run", "authority"),
        ("/usr", "system"),
        ("/usr/bin", "system"),
        ("/dev/null", "device"),
        ("/srv", "volume"),
        ("/home", "volume"),
        ("/opt", "volume"),
        ("/nowhere/at/all", "missing"),
        ("", "missing"),
    ],
)
def test_host_paths(tmp_path: Path, path: str, kind: str) -> None:
    assert places(tmp_path).classify(path).kind == kind


def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "innocent").symlink_to("/etc")
    assert places(tmp_path).classify(str(tmp_path / "innocent")).kind == "authority"


def test_dots_are_refused(tmp_path: Path) -> None:
    """The kernel walks them through links, runc folds them first."""
    assert places(tmp_path).classify(f"{tmp_path}/../../../../../../../../etc").kind == "other"


def test_a_directory_above_the_bundle_is_authority(tmp_path: Path) -> None:
    assert places(tmp_path).classify(str(tmp_path)).kind == "authority"


def test_a_socket_is_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert places(tmp_path).classify(str(tmp_path / "s")).kind == "socket"


def engine(tmp_path: Path) -> tuple[Places, Path]:
    """A Docker-like data root, with one container of 64 digits."""
    data, name = tmp_path / "data", "a" * 64
    root = data / "overlay2" / "layer" / "merged"
    bundle = tmp_path / "exec" / "io.containerd.runtime.v2.task" / "moby" / name
    for made in (
        root,
        bundle,
        data / "volumes" / "v" / "_data" / "sub",
        data / "containers" / name / "mounts" / "secrets",
    ):
        made.mkdir(parents=True)
    (data / "containers" / name / "hosts").write_text("")
    (data / "containers" / name / "config.v2.json").write_text("")
    return Places(str(bundle), str(root)), data


def test_files_of_the_engine(tmp_path: Path) -> None:
    here, data = engine(tmp_path)
    name = "a" * 64
    assert here.classify(str(data / "containers" / name / "hosts")).kind == "engine"
    assert here.classify(str(data / "containers" / name / "mounts" / "secrets")).kind == "engine"
    assert here.classify(str(data / "containers" / name / "config.v2.json")).kind == "authority"
    assert here.classify(str(data / "containers")).kind == "authority"
    assert here.classify(str(data)).kind == "authority"
    assert here.classify(str(data / "volumes" / "v" / "_data")).kind == "volume"
    assert here.classify(str(data / "volumes" / "v" / "_data" / "sub")).kind == "volume"
    assert here.classify(str(data / "volumes")).kind == "authority"
    assert here.classify(str(tmp_path / "exec")).kind == "authority"


def test_secrets_of_another_container_are_authority(tmp_path: Path) -> None:
    here, data = engine(tmp_path)
    other = data / "containers" / ("b" * 64) / "mounts" / "secrets"
    other.mkdir(parents=True)
    assert here.classify(str(other)).kind == "authority"


@pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/var", "/root", "/proc", "/lib"])
def test_the_hosts_own_root_is_no_root_file_system(tmp_path: Path, path: str) -> None:
    assert Places(str(tmp_path), path).root(path).kind == "authority"


def test_a_bundles_root_is_one(tmp_path: Path) -> None:
    assert places(tmp_path).root(str(tmp_path / "bundle" / "rootfs")).kind == "volume"


@ROOT_ONLY
def test_steady_where_only_root_can_change_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert hostpaths.resolve(str(tmp_path / "mine")) == (str(tmp_path / "mine"), True)


@ROOT_ONLY
def test_not_steady_below_another_users_directory(tmp_path: Path) -> None:
    (tmp_path / "theirs" / "project").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 1000, 1000)
    assert not hostpaths.resolve(str(tmp_path / "theirs" / "project"))[1]
    # What is theirs is steady where its name is not: nobody but root can put another thing in its place.
    assert hostpaths.resolve(str(tmp_path / "theirs"))[1]


@ROOT_ONLY
def test_not_steady_through_a_link_in_between(tmp_path: Path) -> None:
    """The link that others own leads to a steady directory; both its ends look fine, the middle does not."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "middle").symlink_to("/srv")
    os.chown(tmp_path / "theirs", 1000, 1000)
    (tmp_path / "first").symlink_to(tmp_path / "theirs" / "middle")
    assert hostpaths.resolve(str(tmp_path / "first")) == ("/srv", False)


@ROOT_ONLY
def test_sticky_directories_protect_roots_entries_only(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "roots").mkdir(parents=True)
    (shared / "theirs").mkdir()
    os.chown(shared / "theirs", 1000, 1000)
    shared.chmod(0o1777)
    assert hostpaths.resolve(str(shared / "roots"))[1]
    assert not hostpaths.resolve(str(shared / "theirs"))[1]
    shared.chmod(0o777)
    assert not hostpaths.resolve(str(shared / "roots"))[1]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert not hostpaths.resolve(str(tmp_path / "a"))[1]


@pytest.mark.parametrize("path", ["/srv", "/usr/../srv", "//srv/", "/usr/bin/env", "/bin/sh"])
def test_resolve_agrees_with_realpath(path: str) -> None:
    assert hostpaths.resolve(path)[0] == os.path.realpath(path)


@ROOT_ONLY
def test_programs_of_root(tmp_path: Path) -> None:
    assert hostpaths.program("/usr/bin/env") == os.path.realpath("/usr/bin/env")
    mine = tmp_path / "tool"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o777)
    assert hostpaths.program(str(mine)) == ""
    mine.chmod(0o755)
    assert hostpaths.program(str(mine)) == str(mine)
    os.chown(mine, 1000, 1000)
    assert hostpaths.program(str(mine)) == ""
    assert hostpaths.program(str(tmp_path)) == ""
    assert hostpaths.program("/nowhere") == ""
