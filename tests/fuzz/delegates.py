"""Fuzzed documents run for real by runc and crun: they read the bytes as we do, and get no more than was granted.

Two claims, on documents that we accept. As they came: what runs is what would run if our own writing of them stood in
their place. Lowered to `agent`: the kernel's word from inside the container is within what was granted. A delegate that
refuses is fine. Everything happens in a private mount namespace; what acts on the whole host (hooks, sysctls, control
groups, devices) is not fuzzed here. Next door: readers.py models the same readers, cheap enough for every input.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from typing import Any

from conformance.room import Result, Room, room
from shim import kernel, plan, product, spec, wire
from shim.dim import capabilities, invocation, seccomp
from shim.errors import ShimError
from tests.fuzz import grow, on_plan

RUNTIMES = ("runc", "crun")
APPLETS = ("sh", "id", "hostname", "grep", "cat", "cut", "env", "pwd", "sort")
PROBE = """id; pwd; hostname; env | sort; ulimit -a
grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid)' /proc/self/status; cat /proc/self/oom_score_adj
cut -d' ' -f5,6 /proc/self/mountinfo"""
NAMESPACES = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network", "cgroup")]
BASE: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "user": {"uid": 0, "gid": 0, "additionalGids": [5]},
        "args": ["/bin/sh", "-c", PROBE],
        "env": ["X=1", "PATH=/bin"],
        "cwd": "/",
        "capabilities": {name: ["CAP_CHOWN", "CAP_KILL"] for name in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        "oomScoreAdj": 5,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "h",
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        {"destination": "/sys", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
    ],
    "annotations": {"a": "b"},
    "linux": {
        "namespaces": NAMESPACES,
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "resources": {"pids": {"limit": 100}},
    },
}
SKIPPED = {"hooks", "linux.sysctl", "linux.cgroupsPath", "linux.resources", "linux.devices", "linux.netDevices"}
SKIPPED |= {
    "linux.namespaces",
    "linux.intelRdt",
    "linux.uidMappings",
    "linux.gidMappings",
    "linux.timeOffsets",
    "root.path",
}
SKIPPED |= {"process.args", "process.terminal"}


def harmless(shape: spec.Object, path: str = "") -> spec.Object:
    """`shape` without what SKIPPED names."""
    fields: dict[str, spec.Shape] = {}
    for key, inner in shape.fields.items():
        here = f"{path}.{key}".lstrip(".")
        if here not in SKIPPED and not isinstance(inner, spec.Platform):
            fields[key] = harmless(inner, here) if isinstance(inner, spec.Object) else inner
    return spec.Object(fields)


SHAPE = harmless(spec.SPEC)


def tricks() -> Iterator[bytes]:
    """What the delegates are known to read in two ways. We refuse all of it today, so that none is run."""
    text = json.dumps(BASE)
    for old, new in (
        ('"hostname": "h"', '"hostname": "h", "Hostname": "g"'),
        ('"hostname": "h"', '"hostname": "h", "ho\u017ftname": "g"'),
        ('"hostname": "h"', '"hostname": "h", "hostname": "g"'),
        ('"uid": 0', '"uid": "7"'),
        ('"X=1"', '"X=\\ud800"'),
        ('"X=1"', '"X=1\\u0000"'),
        ('"oomScoreAdj": 5', '"oomScoreAdj": 5.0'),
        ('"additionalGids": [5]', '"additionalGids": [5, null]'),
    ):
        yield text.replace(old, new).encode()
    yield (text + text.replace('"h"', '"g"')).encode()


def inputs(seed: int) -> Iterator[bytes]:
    """The tricks, then random ones for ever."""
    yield from tricks()
    r = random.Random(seed)
    while True:
        reader = grow.Reader(r.randbytes(120))
        whole = grow.tree(BASE)
        for _ in range(1 + reader.below(3)):
            grow.edit(whole, SHAPE, reader, reader.below(2) == 1)
        yield grow.text(whole).encode("utf-8", "surrogatepass")


def documents(seed: int) -> Iterator[tuple[bytes, Any]]:
    """Documents that we accept, and what we read in them."""
    for data in inputs(seed):
        try:
            yield data, spec.check(wire.loads(data, "fuzz", "input"), "drop")[0]
        except ShimError:
            continue


class Delegate:
    """runc or crun with a bundle of its own in `room`."""

    def __init__(self, place: Room, name: str) -> None:
        self.room, self.name, self.count = place, name, 0
        self.bundle = place.base / name
        for directory in ("rootfs/bin", "rootfs/proc", "rootfs/dev", "rootfs/sys", "rootfs/tmp"):
            (self.bundle / directory).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "", self.bundle / "rootfs/bin/busybox")
        for applet in APPLETS:
            (self.bundle / "rootfs/bin" / applet).symlink_to("busybox")

    def run(self, config: bytes) -> Result:
        self.count += 1
        (self.bundle / "config.json").write_bytes(config)
        words = [self.name, "--root", f"{self.bundle}/state", "run", "--bundle", str(self.bundle)]
        return self.room.run([*words, f"fuzz-{os.getpid()}-{self.count}"], timeout=60)

    def differs(self, data: bytes, new: Any) -> str:
        """What is wrong with running `data`, which we read as `new`; '' for nothing, '-' where it was refused."""
        raw = self.run(data)
        if raw.code != 0:
            return "-"
        ours = self.run(wire.dumps(new))
        same = (ours.code, ours.out) == (raw.code, raw.out)
        return "" if same else f"{self.name} reads these bytes otherwise: {data!r}\n{raw}\n{ours}"

    def exceeds(self, new: Any, sections: dict[str, Any]) -> str:
        """The same for the spec lowered to a policy's `sections`."""
        facts = kernel.gather(new, str(self.bundle), invocation.BOTTOM)
        facts.launcher, facts.locker = "/usr/bin/agentshim", "/usr/lib/agentshim/agentshim-net"
        seccomp._settled.clear()
        try:
            made = plan.make(new, product.from_policy(sections), facts, on_plan.admit)
        except ShimError:
            return "-"
        seen = self.run(wire.dumps(made.spec))
        if seen.code != 0:
            return "-"
        status = dict(line.split(":\t") for line in seen.out.splitlines() if ":\t" in line)
        granted: capabilities.Capabilities = made.granted["capabilities"]
        names = dict(zip(capabilities.SETS, ("CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"), strict=True))
        for mask, name in zip(granted.sets, names.values(), strict=True):
            if int(status[name], 16) & ~mask:
                return f"{self.name}: {name} {status[name]} beyond {mask:x}: {made.spec}"
        if status["NoNewPrivs"] == "0" and not granted.gain:
            return f"{self.name}: NoNewPrivs is not set: {made.spec}"
        root = next((line for line in seen.out.splitlines() if line.startswith("/ ")), "/ ro")
        return "" if root.split()[1].split(",")[0] == "ro" else f"{self.name}: the root is writable: {made.spec}"


def missing() -> str:
    """Why this cannot run here, or ''."""
    if os.geteuid() != 0:
        return "containers need root"
    absent = [name for name in (*RUNTIMES, "busybox") if not shutil.which(name)]
    return f"not installed: {', '.join(absent)}" if absent else ""


def run(count: int, seed: int) -> tuple[str, int, float, str, str, list[dict[str, str]]]:
    """One row of the table: `count` documents, each by both delegates; edges: how many of the runs were no refusal."""
    if why := missing():
        return "runc, crun", 0, 0.0, "-", "SKIPPED", [{"sign": "SKIPPED LOUDLY", "what": why, "input": ""}]
    begin, found, ran, total = time.monotonic(), [], 0, 0
    agent = {**on_plan.POLICIES["agent"]}
    agent.pop("small")
    with room("fuzz-") as place:
        delegates = [Delegate(place, name) for name in RUNTIMES]
        for number, (data, new) in zip(range(count), documents(seed), strict=False):
            for one in delegates:
                for wrong in (
                    (one.differs(data, new),) if number % 2 else (one.differs(data, new), one.exceeds(new, agent))
                ):
                    total += 1
                    ran += wrong != "-"
                    if wrong not in ("", "-"):
                        found.append({"sign": wrong.partition(":")[0], "what": wrong[:3000], "input": data.hex()})
    return "runc, crun", total, time.monotonic() - begin, f"{ran} ran", "", found
