"""What explain and refusals tell a reader to write into a policy: every such line compiles, and gives back.

A line is `[section] key = value, key = value`, or `section = "top", why = …, doc = …` for the file itself; what is in
dots or capitals is for the reader to fill in.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shim import plan, policy, product
from shim.cold.policy import compile as cold
from shim.dim import capabilities, invocation, network, rlimits
from shim.hostpaths import Source
from shim.kernel import Facts
from tests.unit.policy_host import Host, make_host

FILLED = {
    'names = ["…"]': 'names = ["mount"]',
    'architectures = ["…"]': 'architectures = ["x86"]',
    '"…"': '"a reason"',
    "ADDRESS:PORT": "203.0.113.5:443",
    "PORT": "8080",
    "/dev/…": "/dev/x",
}
# Advice that takes a line away: there is nothing to add.
PROSE = r"take them out of \[paths\] (masked|readonly)|\[resources\] without \w+|\[rlimits\] no \w+"


def facts() -> Facts:
    out = Facts()
    out.launcher = "/usr/local/bin/agentshim"
    out.security_modules = ("apparmor", "selinux")
    out.default_labels = {"apparmor": "docker-default"}
    kinds = ("volume", "socket", "authority", "device", "missing", "system", "engine")
    out.sources = {f"/{kind}": Source(kind, f"/{kind}") for kind in kinds}
    out.sources["/run/docker.sock"] = Source("socket", "/run/docker.sock")
    out.sources["root:rootfs"] = Source("volume", "/b/rootfs")
    out.network = network.TOP
    out.programs = {"/opt/hook": "/opt/hook"}
    out.namespaces = {("pid", "/ns/a"): "at:1:1", ("ipc", "/ns/a"): "at:1:2"}
    flags, verbs = frozenset(invocation.FLAGS), frozenset(("checkpoint", "restore"))
    out.invocation = invocation.Invocation(flags, (3,) * len(invocation.COUNTS), verbs)
    return out


FACTS = facts()


def everything() -> dict[str, Any]:
    """A spec that asks for all that there is."""
    sources = [source for source in FACTS.sources if source.startswith("/")]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": ["x"],
            "cwd": "/proc/self/fd/7",
            "user": {"uid": 0, "gid": 0},
            "capabilities": {kind: ["CAP_" + one for one in capabilities.CAPABILITIES] for kind in capabilities.SETS},
            "rlimits": [{"type": kind, "soft": rlimits.INFINITY, "hard": rlimits.INFINITY} for kind in rlimits.TYPES],
            "oomScoreAdj": -999,
            "scheduler": {"policy": "SCHED_FIFO"},
            "ioPriority": {"class": "IOPRIO_CLASS_RT"},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": f"/d{i}", "type": "bind", "source": source, "options": ["rbind", "rw", "suid", "shared"]}
            for i, source in enumerate(sources)
        ],
        "hooks": {"prestart": [{"path": "/opt/hook"}]},
        "annotations": {"run.oci.hooks.stderr": "x"},
        "linux": {
            "mountLabel": "system_u:object_r:container_file_t:s0",
            "namespaces": [{"type": "pid", "path": "/ns/a"}, {"type": "ipc", "path": "/ns/a"}],
            "personality": {"domain": "LINUX32"},
            "sysctl": {"kernel.shmmax": "1", "net.ipv4.ip_forward": "1", "kernel.hostname": "x", "vm.swappiness": "1"},
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
            "netDevices": {"eth0": {}},
            "cgroupsPath": "/",
            "rootfsPropagation": "shared",
            "resources": {
                "devices": [{"allow": True, "access": "rwm"}],
                "pids": {"limit": 999999},
                "memory": {"limit": 1 << 50, "swap": 1 << 50},
                "cpu": {"quota": 1 << 30, "period": 100000},
                "network": {"classID": 7},
            },
        },
    }


def asking() -> list[dict[str, Any]]:
    """That spec, without a filter and with one that loses in every way; and some that ask for less, by name."""
    whole = everything()
    rules = [
        {"names": ["mount", "ptrace"], "action": "SCMP_ACT_LOG"},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NE"}]},
    ]
    archs = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    loose = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": archs, "syscalls": rules}
    harder = {"defaultAction": "SCMP_ACT_TRAP", "architectures": archs[:1], "syscalls": rules}
    fuse = [{"allow": False}, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]
    labels = {"apparmorProfile": "mine", "selinuxLabel": "system_u:system_r:container_t:s0"}
    return [
        whole,
        *({**whole, "linux": {**whole["linux"], "seccomp": raw}} for raw in (loose, harder)),
        {**whole, "linux": {**whole["linux"], "resources": {"devices": fuse}}},
        {**whole, "process": {**whole["process"], **labels, "rlimits": [], "oomScoreAdj": 0}},
    ]


def hints(name: str) -> set[tuple[str, str]]:
    """(dimension, what it tells to write) for all that these specs lose under the built-in policy, or under none."""
    sections = policy.load(name, policy.Config({})).sections if name else {}
    out: set[tuple[str, str]] = set()
    for asked in asking():
        made = plan.make(asked, product.from_policy(sections), FACTS, lambda mine, top, mask: None, "audit")
        out |= {(room, loss.allow) for room, loss in made.losses()}
        out |= {
            (one.room, told[0]) for one in product.refusals(made.asked, made.granted) if (told := TOLD.search(one.todo))
        }
    return out


def lost(asked: dict[str, Any], ceiling: dict[str, Any], hint: str) -> set[tuple[str, str, str]]:
    """What is lost under the ceiling, of all that the hint is told for."""
    made = plan.make(asked, ceiling, FACTS, lambda mine, top, mask: None, "audit")
    told = {(one.room, one.key, str(one)) for one in product.refusals(made.asked, made.granted) if hint in one.todo}
    return told | {(room, loss.key_path, loss.granted) for room, loss in made.losses() if loss.allow == hint}


# A line within the advice of a refusal.
TOLD = re.compile(r'\[\w+\] \w+ = (\[.*\]|"[^"]*"(?! or ))(, \w+ = ("[^"]*"|true))*')


def as_toml(hint: str) -> str:
    for placeholder, value in FILLED.items():
        hint = hint.replace(placeholder, value)
    table = re.fullmatch(r"\[(\w+)\] (.*)", hint)
    return f"{table[1]} = {{ {table[2]} }}" if table else re.sub(r", (why|doc) = ", r"\n\1 = ", hint)


ALL = {(name, *hint) for name in ("agent", "locked", "") for hint in hints(name)}


def test_every_dimension_has_something_to_tell() -> None:
    assert {room for _, room, _ in ALL} == {dim.NAME for dim in product.DIMENSIONS}
    assert {hint for _, room, hint in ALL if room == "namespaces"} >= {
        '[namespaces] host = ["network"], why = "…", doc = "https://…"',
        '[namespaces] shared = ["pid"]',
    }


@pytest.mark.parametrize(("name", "room", "hint"), sorted(ALL), ids=lambda value: re.sub(r"\W+", "-", value)[:60])
def test_what_is_told_to_write_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, room: str, hint: str
) -> None:
    if re.fullmatch(PROSE, hint):
        return
    host: Host = make_host(tmp_path, monkeypatch)
    host.configure('limit = "identity"\n')
    host.policy("mine", (f'base = "{name}"\n' if name else "") + as_toml(hint) + "\n")
    form = cold.compile("mine", host.config())
    if '["…"]' in hint:  # filled in with something else than was lost
        return
    before = product.from_policy(policy.load(name, policy.Config({})).sections if name else {})
    after = product.from_policy(form["sections"])
    assert [lost(asked, before, hint) for asked in asking()] != [lost(asked, after, hint) for asked in asking()]
