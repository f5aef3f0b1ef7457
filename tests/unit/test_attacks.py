"""Attacks that once went through, each by its name, on the bytes that would be written or the refusal that comes.

The same on a real kernel: conformance/oci. Here every variant costs a millisecond.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from shim import mountinfo, plan, policy, product
from shim.dim import lsm, mounts, seccomp
from shim.errors import Invalid, Refused
from shim.hostpaths import Places, Source, resolve
from shim.kernel import Facts
from shim.mountinfo import Mount
from shim.verbs import hook

LAUNCHER = "/usr/local/bin/agentshim"
SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["x"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
    "root": {"path": "rootfs"},
    "mounts": [],
    "linux": {"namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup")]},
}


def facts(**more: Any) -> Facts:
    out = Facts()
    out.launcher = LAUNCHER
    out.sources = {
        "root:rootfs": Source("volume", "/b/rootfs"),
        "/srv/vol": Source("volume", "/srv/vol"),
        "/usr/share": Source("system", "/usr/share"),
    }
    out.programs = {LAUNCHER: LAUNCHER, "/usr/bin/podman": "/usr/bin/podman", "/proc/9/exe": "/usr/sbin/dockerd"}
    out.programs["/usr/sbin/dockerd"] = "/usr/sbin/dockerd"
    for name, value in more.items():
        setattr(out, name, value)
    return out


def granted(change: dict[str, Any], known: Facts | None = None, name: str = "agent") -> Any:
    """What the policy makes of SPEC with `change` laid over it, key by key."""
    spec = copy.deepcopy(SPEC)
    for path, value in change.items():
        here = spec
        *parents, last = path.split(".")
        for parent in parents:
            here = here.setdefault(parent, {})
        here[last] = value
    ceiling = product.from_policy(policy.load(name, policy.Config({})).sections)
    ceiling["seccomp"] = seccomp.TOP
    return plan.make(spec, ceiling, known or facts(), lambda asked, top, mask: None).spec


@pytest.mark.parametrize(
    "name", ["21", "0x15", "cap_sys_admin ", "CAP_SYS_ADMIN+x", "cap_chown", "SYS_ADMIN", "CAP_NEW"]
)
def test_capability_names_that_only_libcap_reads(name: str) -> None:
    sets = {kind: [name] for kind in ("bounding", "effective", "permitted")}
    out = granted({"process.capabilities": sets, "process.noNewPrivileges": True})
    assert not any(out["process"]["capabilities"].values())


def ours(**change: Any) -> dict[str, Any]:
    return {**Facts.our_hook(facts(), "/r", "c"), **change}


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "poststart", "poststop"])
@pytest.mark.parametrize(
    "forged",
    [
        ours(env=["LD_PRELOAD=/vol/evil.so"]),
        ours(args=["agentshim", "hook", "/r", "c", "more"]),
        {"path": "/usr/bin/podman", "args": ["podman", "unshare", "sh", "-c", "id"]},
        {"path": "/proc/9/exe", "args": ["dockerd", "--config-file", "/vol/evil.json"]},
        {
            "path": "/proc/9/exe",
            "args": ["libnetwork-setkey", "-exec-root=/x", "ab", "cd"],
            "env": ["LD_PRELOAD=/vol/x"],
        },
        {"path": "/tmp/evil"},
    ],
)
def test_forged_hooks(kind: str, forged: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="hooks"):
        granted({"hooks": {kind: [forged]}})


def test_dockerds_own_hook_passes_by_its_real_file() -> None:
    setkey = {"path": "/proc/9/exe", "args": ["libnetwork-setkey", "-exec-root=/run/docker", "ab12", "cd34"]}
    out = granted({"hooks": {"prestart": [setkey]}})
    assert out["hooks"]["prestart"] == [{**setkey, "path": "/usr/sbin/dockerd"}]


def test_our_own_hook_that_we_did_not_write_is_removed() -> None:
    assert granted({"hooks": {"createRuntime": [ours()]}})["hooks"]["createRuntime"] == []


@pytest.mark.parametrize(
    ("node", "there"),
    [
        ({"path": "/etc/shadow", "type": "c", "major": 1, "minor": 3}, {"/etc/shadow": ("", 0, 0)}),
        ({"path": "/etc/shadow", "type": "p"}, {"/etc/shadow": ("", 0, 0)}),
        ({"path": "/dev/sock", "type": "c", "major": 1, "minor": 3}, {"/dev/sock": ("", 0, 0)}),
        ({"path": "/dev/../etc/shadow", "type": "c", "major": 1, "minor": 3}, {}),
        ({"path": "/dev/vda", "type": "b", "major": 254, "minor": 0}, {"/dev/vda": ("b", 254, 0)}),
        ({"path": "/dev/x", "type": "block", "major": 254, "minor": 0}, {}),
        ({"path": "/dev/console", "type": "c", "major": 5, "minor": 1}, {"/dev/console": ("c", 5, 1)}),
    ],
)
def test_device_nodes_that_bind_or_open_the_hosts(node: dict[str, Any], there: dict[str, Any]) -> None:
    """runc binds the host's file of a node's path where mknod is denied, as in a user namespace."""
    assert not granted({"linux.devices": [node]}, facts(nodes=there))["linux"].get("devices")


def test_a_standard_node_passes() -> None:
    null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
    assert granted({"linux.devices": [null]}, facts(nodes={"/dev/null": ("c", 1, 3)}))["linux"]["devices"] == [null]


def test_a_rule_for_all_types_with_numbers() -> None:
    """The v1 controller ignores the numbers and denies all; crun's v2 program denies that one device."""
    rules = [{"allow": True, "access": "rwm"}, {"allow": False, "type": "a", "major": 1, "minor": 99, "access": "rwm"}]
    with pytest.raises(Invalid, match="type a"):
        granted({"linux.resources": {"devices": rules}})


def bind(options: list[str], place: str = "/data", source: str = "/srv/vol") -> dict[str, Any]:
    return {"destination": place, "type": "bind", "source": source, "options": options}


@pytest.mark.parametrize("option", ["remount", "copy-symlink", "lowerdir=/etc", "x-mount.mkdir", "REMOUNT", "nosuch"])
def test_options_that_do_more_than_they_say(option: str) -> None:
    with pytest.raises(Refused, match="mounts"):
        granted({"mounts": [bind(["rbind", "ro"], source="/usr/share"), bind(["bind", option, "rw"])]})


@pytest.mark.parametrize("place", ["/dev", "/dev/null", "/proc/sys", "/sys", "dev", "//dev/", "/proc"])
def test_a_volume_over_what_masks_are_made_of(place: str) -> None:
    with pytest.raises(Refused, match="mounts"):
        granted({"mounts": [bind(["rbind"], place)]})


@pytest.mark.parametrize(
    "kind", ["proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devtmpfs", "overlay", "ext4", "nfs", ""]
)
def test_a_second_view_of_the_kernel(kind: str) -> None:
    with pytest.raises(Refused, match="mounts"):
        granted({"mounts": [{"destination": "/elsewhere", "type": kind, "source": "x"}]})


def test_a_source_inside_the_containers_own_root(tmp_path: Path) -> None:
    """By the time it is mounted, rootfs/proc is a proc without masks."""
    root = tmp_path / "bundle" / "rootfs"
    (root / "proc").mkdir(parents=True)
    assert Places(str(tmp_path / "bundle"), str(root)).classify(str(root / "proc")).kind == "authority"


def test_a_source_through_another_process(tmp_path: Path) -> None:
    """/proc/PID/root is a link whose text says / and whose meaning is another root."""
    here = Places(str(tmp_path), str(tmp_path / "rootfs"))
    for path in ("/proc/self/root/srv", "/proc/self/cwd", "/proc/1/root/home"):
        assert here.classify(path).kind in ("authority", "missing")
        assert not resolve(path)[1]


def test_engine_files_only_in_their_place(tmp_path: Path) -> None:
    layer = tmp_path / "data" / "overlay2"
    other = layer / "other" / "diff"
    for name in ("etc/hosts", "run/hosts", "volumes/v/_data/hosts"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text("")
    (layer / "mine" / "merged").mkdir(parents=True)
    here = Places(str(tmp_path / "bundle"), str(layer / "mine" / "merged"))
    for name in ("etc/hosts", "run/hosts", "volumes/v/_data/hosts", "run", "volumes/v/_data"):
        assert here.classify(str(other / name)).kind == "authority"


@pytest.mark.parametrize(
    "path", ["/run/lock", "/var/backups", "/var/spool", "/run", "/usr/lib", "/etc/ssl", "/var/lib"]
)
def test_a_directory_of_the_host_as_root(tmp_path: Path, path: str) -> None:
    assert Places(str(tmp_path), path).root(path).kind in ("authority", "missing")


HOST = [Mount("/", "ext4", "8:1", "/"), Mount("/srv/alias", "ext4", "8:1", "/etc"), Mount("/run", "tmpfs", "0:9", "/")]
EXPECTED = [
    ["/", [["8:1", "/b/rootfs"]]],
    ["/data", [["8:1", "/srv/vol"], ["8:2", "/"]]],
    ["/sys-dir", [["8:1", "/usr/x"]]],
]
LOOSE = [[["8:1", "/e/hosts"], False], [["8:1", "/usr/bin/init"], True]]


def inside(*more: Mount) -> list[Mount]:
    own = [
        Mount("/b/rootfs", "ext4", "8:1", "/b/rootfs"),
        Mount("/b/rootfs/proc", "proc", "0:50", "/"),
        Mount("/b/rootfs/proc/sys", "proc", "0:50", "/sys", True),
        Mount("/b/rootfs/tmp", "tmpfs", "0:51", "/"),
        Mount("/b/rootfs/dev/console", "devpts", "0:52", "/0"),
        Mount("/b/rootfs/sys/fs/cgroup/pids", "cgroup", "0:30", "/x"),
        Mount("/b/rootfs/dev/null", "devtmpfs", "0:6", "/null"),
        Mount("/b/rootfs/run/resolved/hosts", "ext4", "8:1", "/e/hosts"),
    ]
    return [*HOST, *own, *more]


@pytest.mark.parametrize(
    "found",
    [
        Mount("/b/rootfs/data", "ext4", "8:1", "/etc"),  # exchanged for a directory of the host
        Mount("/b/rootfs/hidden", "ext4", "8:1", "/etc"),  # and covered, or led elsewhere by a link
        Mount("/b/rootfs/data", "ext4", "8:1", "/srv/vol/.."),
        Mount("/b/rootfs/data", "tmpfs", "0:9", "/"),  # the host's /run looks like a fresh tmpfs, but for its device
        Mount("/b/rootfs/proc", "ext4", "8:1", "/srv/vol"),  # led over the kernel's own by a link of the image
        Mount("/b/rootfs/dev", "ext4", "8:1", "/srv/vol"),
        Mount("/b/rootfs/else", "ext4", "8:1", "/srv/vol"),
        Mount("/b/rootfs/data", "proc", "0:50", "/"),  # exchanged for the container's own proc, without masks
        Mount("/b/rootfs/data", "sysfs", "0:53", "/"),
        Mount("/b/rootfs/data", "ext4", "8:1", "/b/rootfs"),  # for its own root, which is read-only where it belongs
        Mount("/b/rootfs/data", "ext4", "8:1", "/usr/x"),  # for a directory that another mount may show, read-only
        Mount("/b/rootfs/data/below", "ext4", "8:1", "/srv/vol"),
        Mount("/b/rootfs/data", "ext4", "8:2", "/"),
        Mount("/b/rootfs/else", "ext4", "8:1", "/usr/bin/init"),
        Mount("/b/rootfs/dev/null", "devtmpfs", "0:6", "/vda"),
        Mount("/b/rootfs/proc/keys", "proc", "0:50", "/kcore"),
        Mount("/b/rootfs/data", "cgroup", "0:30", "/"),
    ],
)
def test_what_was_mounted_is_not_what_was_checked(found: Mount) -> None:
    with pytest.raises(Refused, match="mounts"):
        hook.check_mounts(inside(found), HOST, "/b/rootfs", EXPECTED, LOOSE)


def test_what_was_checked_is_mounted() -> None:
    volume = (Mount("/b/rootfs/data", "ext4", "8:1", "/srv/vol"), Mount("/b/rootfs/data/below", "ext4", "8:2", "/"))
    hook.check_mounts(inside(*volume), HOST, "/b/rootfs", EXPECTED, LOOSE)
    hook.check_mounts(
        inside(Mount("/b/rootfs/i", "ext4", "8:1", "/usr/bin/init", True)), HOST, "/b/rootfs", EXPECTED, LOOSE
    )


def test_an_alias_of_what_is_not_lent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bind of /etc elsewhere on the host, asked by its other name or brought along by a recursive bind."""
    (tmp_path / "vol" / "alias").mkdir(parents=True)
    there = [Mount("/", "ext4", "8:1", "/"), Mount(f"{tmp_path}/vol/alias", "ext4", "8:1", "/etc")]
    monkeypatch.setattr(mountinfo, "table", lambda pid="self": there)
    here = Places("/b", "/b/rootfs")
    assert here.classify(f"{tmp_path}/vol/alias").kind == "authority"
    assert here.classify(f"{tmp_path}/vol").kind == "authority"
    there.pop()
    assert Places("/b", "/b/rootfs").classify(f"{tmp_path}/vol").kind == "volume"


@pytest.mark.parametrize(
    "cwd", ["/proc/self/fd/7", "/dev/fd/7", "//proc/1", "/a/../proc", "relative", "/sys/fs", "/./x"]
)
def test_working_directories_that_lead_out(cwd: str) -> None:
    with pytest.raises(Refused, match="process"):
        granted({"process.cwd": cwd})


def test_mounts_of_the_host_root_are_named() -> None:
    known = facts()
    known.sources["/"] = Source("authority", "/")
    with pytest.raises(Refused, match="authority over the host"):
        granted({"mounts": [bind(["rbind"], "/host", "/")]}, known)
    assert mounts.BOTTOM.entries == ()


LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.mark.parametrize(
    ("section", "kept"),
    [
        ("top", True),
        ({}, True),
        ({"selinux": "confined"}, True),
        ({"selinux": LABEL}, True),
        ({"selinux": "system_u:system_r:container_t:s0:c1,c2"}, False),
        (None, False),
    ],
    ids=["top", "table", "any label", "this label", "another label", "no section"],
)
@pytest.mark.parametrize("active", [(), ("selinux",)], ids=["inactive", "active"])
def test_a_label_for_mounts_that_the_policy_does_not_name(section: Any, kept: bool, active: tuple[str, ...]) -> None:
    """Files with the label of another container, or of the host, are another domain's to use."""
    spec = {
        **SPEC,
        "process": {**SPEC["process"], "selinuxLabel": "p"},
        "linux": {**SPEC["linux"], "mountLabel": LABEL},
    }
    known = facts(security_modules=active)
    asked = lsm.from_spec(spec, known)
    ceiling = lsm.from_policy(section)
    met = lsm.meet(asked, ceiling)
    written = lsm.apply_to_spec(spec, met, known)
    assert written["linux"].get("mountLabel") == (LABEL if kept else None)
    assert [loss.key_path for loss in lsm.explain(asked, ceiling, met)].count("linux.mountLabel") == (not kept)
    assert not [one for one in lsm.refusals(asked, met) if one.key == "linux.mountLabel"]  # type: ignore[attr-defined]
    assert lsm.from_spec(written, known).labels[2] == met.labels[2]


@pytest.mark.parametrize("label", ["unconfined", "confined", "x"])
def test_no_word_for_a_mount_label_is_above_the_policy(label: str) -> None:
    ceiling = {**product.TOP, "lsm": lsm.from_policy({"selinux": "l"})}
    spec = {**SPEC, "linux": {**SPEC["linux"], "mountLabel": label}}
    made = plan.make(spec, ceiling, facts(security_modules=("selinux",)), lambda asked, top, mask: None, "audit")
    assert "mountLabel" not in lsm.apply_to_spec(spec, made.granted["lsm"], facts())["linux"]


@pytest.mark.parametrize("asked", [{}, {"apparmorProfile": "unconfined"}, {"selinuxLabel": ""}])
@pytest.mark.parametrize("section", [{}, {"apparmor": "mine"}, {"selinux": "u:r:t:s0"}])
def test_labels_of_a_module_that_is_not_there_ask_nothing(asked: dict[str, str], section: dict[str, str]) -> None:
    ceiling = {**product.TOP, "lsm": lsm.from_policy(section)}
    spec = {**SPEC, "process": {**SPEC["process"], **asked}}
    assert plan.make(spec, ceiling, facts(), lambda asked, top, mask: None).data is None
