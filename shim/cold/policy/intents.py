"""Intents: what a policy's author wants to do, as the joins it takes. Rows of data; `compile` expands them.

Belongs here: the vocabulary. Next door: schema/policy.json checks an intent's form; `compile` merges `joins`, which
are written as a policy's own tables are.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Intent(NamedTuple):
    """`about`: one sentence for the manual; `joins`: section -> table."""

    about: str
    joins: dict[str, dict[str, Any]]


# {path} and {to} stand for the intent's own parameter.
INTENTS: dict[str, Intent] = {
    "bind-low-port": Intent(
        "listen on a port below 1024",
        # Ambient as well: a process of another user than root gets no capability from the other four sets at execve.
        {"capabilities": {"add": [{"names": ["NET_BIND_SERVICE"], "ambient": True}]}},
    ),
    "web-service": Intent(
        "a server that starts as root, binds :80 and :443, hands files to its workers' user and becomes that user",
        {
            "capabilities": {
                "add": [
                    {"names": ["NET_BIND_SERVICE"], "ambient": True},
                    {"names": ["SETUID", "SETGID", "CHOWN"]},
                ]
            },
            "paths": {"scratch": {"/run": {"size": "16m", "exec": False}}},
        },
    ),
    "workspace": Intent("volumes at PATH may be written to", {"mounts": {"workspace": ["{path}"]}}),
    "shell": Intent("programs and scripts on a volume may be executed", {"mounts": {"exec": True}}),
    "packages": Intent(
        "install packages with apt, apk, dnf, pip or npm",
        {
            "capabilities": {
                "add": [
                    {"names": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID"]},  # unpacking files of many owners
                    {"names": ["SETUID", "SETGID", "KILL"]},  # downloads run as another user (apt's _apt)
                    {"names": ["SYS_CHROOT"]},  # apk runs scripts in its root, even if that is /
                ]
            },
            "paths": {"rootfs": "writable"},
        },
    ),
    "debug": Intent(
        "gdb and strace on processes of the same user; above the built-in host limit",
        # No SYS_PTRACE: the same user needs none, and it would reach processes of all users.
        {"seccomp": {"add": [{"names": ["ptrace", "process_vm_readv", "process_vm_writev"]}]}},
    ),
    "outbound": Intent(
        "connect to these peers, and no others",
        {"network": {"outbound": ["{to}"]}},
    ),
    "user-namespaces": Intent(
        "make user namespaces, and mounts in them (bwrap, sandboxes of browsers); above the built-in host limit",
        {"seccomp": {"add": [{"names": ["@user-namespaces"]}]}},
    ),
}
