"""The calls that faults are put into: each asks for more than it gets.

Belongs here: what is asked, and how the stage is set before each call. Next door: `inject` makes one call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from conformance.faults.inject import Stage
from conformance.oci.bundles import spec

ALL = [f"CAP_{name}" for name in ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "CHOWN", "SETUID", "SYS_MODULE")]
SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def greedy() -> dict[str, Any]:
    """A spec that asks the host's network and processes, all capabilities and devices, and gets a container."""
    out = spec("sh")
    out["process"]["capabilities"] = {name: list(ALL) for name in SETS}
    out["process"]["noNewPrivileges"] = False
    out["process"]["oomScoreAdj"] = -500
    out["process"]["rlimits"] = [{"type": "RLIMIT_CORE", "hard": 1 << 40, "soft": 1 << 40}]
    out["annotations"] = {"run.oci.handler": "krun", "org.example": "kept"}
    out["linux"] = {
        "namespaces": [{"type": "mount"}, {"type": "network", "path": "@network"}, {"type": "uts"}],
        "resources": {"devices": [{"allow": True, "access": "rwm"}], "unified": {"pids.max": "max"}},
        "sysctl": {"kernel.core_pattern": "|/x"},
        "devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}],
    }
    out["mounts"].append({"destination": "/work", "type": "bind", "source": "@volume", "options": ["rbind", "rshared"]})
    return out


def process() -> dict[str, Any]:
    return {**greedy()["process"], "args": ["sh"]}


RESOURCES = {
    "pids": {"limit": -1},
    "unified": {"pids.max": "max"},
    "memory": {"disableOOMKiller": True, "limit": 1 << 30},
}
AUTHORITY = {"NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "3"}


@dataclass(frozen=True)
class Scenario:
    """`words`: the call; `lowers`: what of all that the delegate got must be the lowered one; `exit`: of a refusal;
    `made`: a clean create comes first, `unseen`: as on a host where no filter of its pair was compared yet.
    """

    name: str
    words: tuple[str, ...]
    lowers: str
    exit: int = 1
    made: bool = False
    input: str = ""
    env: dict[str, str] = field(default_factory=dict)
    unseen: bool = False

    def prepare(self, stage: Stage) -> None:
        """The stage as an engine leaves it before this call."""
        volume = stage.room.base / "volume"
        volume.mkdir(exist_ok=True)
        text = json.dumps(greedy()).replace("@volume", str(volume)).replace("@network", str(stage.network))
        if not stage.config.exists() or stage.config.read_text() != text:
            stage.config.write_text(text)
        (stage.home / "process.json").write_text(json.dumps(process()))
        stage.forget()
        if self.unseen:
            stage.room.run(["sh", "-c", "rm -f /var/lib/agentshim/seccomp/*.seen"])
        if self.made:
            first = stage.call(["create", "--bundle", str(stage.bundle), "c"])
            assert first.ran == 1, first
            stage.remember()

    def call(self, stage: Stage) -> list[str]:
        return [word.format(bundle=stage.bundle, home=stage.home) for word in self.words]


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("create", ("create", "--bundle", "{bundle}", "--no-pivot", "c"), "config.json", env=AUTHORITY),
        Scenario("run", ("run", "--bundle", "{bundle}", "--preserve-fds", "3", "c"), "config.json"),
        Scenario("exec", ("exec", "--process", "{home}/process.json", "--detach", "c"), "process.json", 255, True),
        Scenario("exec-options", ("exec", "--cap", "CAP_SYS_ADMIN", "-u", "0", "c", "sh"), "process.json", 255, True),
        Scenario("update", ("update", "--resources=-", "c"), "stdin", made=True, input=json.dumps(RESOURCES)),
        Scenario("start", ("start", "c"), "argv", made=True, unseen=True),
        Scenario("delete", ("delete", "--force", "c"), "", made=True),
    )
}
