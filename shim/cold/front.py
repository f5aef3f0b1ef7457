"""What a person types at agentshim itself: explain, policy, --version, help. Engines call only --version."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from shim import policy, runc
from shim.cold import site
from shim.errors import HostError, ShimError

if TYPE_CHECKING:
    from shim.argv import Call
    from shim.cli import Context

VERSION = "0.1.0"
USAGE = """agentshim: an OCI runtime that lowers what a container asks to what the host's policy allows

  as a runtime (called by an engine; options and verbs are those of runc)
    create run start state kill delete exec update pause resume ps events list features checkpoint restore
  for people
    agentshim explain BUNDLE|CONTAINER [--policy P] [--json]
    agentshim policy list|show|check|compile|table
    agentshim --version
"""


def run(call: Call, context: Context) -> int:
    """The exit code of one of our own commands. Raises ShimError."""
    site.enable()
    if call.verb == "explain":
        from shim.cold import explain

        if os.geteuid() != 0:
            raise HostError("explain", "user", f"uid {os.geteuid()}", "root", "run it as root: records are root's")
        return explain.main(call.args)
    if call.verb == "policy":
        from shim.cold import policies

        return policies.main(call.args)
    sys.stdout.write(version() if call.verb == "version" else USAGE)
    return 0


def version() -> str:
    """Our version, then the delegate's own lines: `docker info` takes the last that holds "version", and "commit:"."""
    lines = [f"agentshim version {VERSION}"]
    try:
        path = runc.find(policy.config()).path
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
        lines += told.stdout.splitlines()
    except (ShimError, OSError, subprocess.TimeoutExpired) as error:
        lines.append(f"delegate: {error}")
    return "\n".join(lines) + "\n"
