"""What a person types at agentshim itself: explain, policy, --version, help. Engines call only --version."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from shim import argv, policy, runc
from shim.cold import site
from shim.errors import HostError, ShimError, reason

if TYPE_CHECKING:
    from shim.argv import Call
    from shim.cli import Context

VERSION = "0.1.0"
RECORDS = ("explain", "audit", *argv.NETWORK)
UNAIDED = ("doctor", "complete")  # they need no packages, and one says itself what is wrong with these
READER_GONE = 141  # as a shell reports a program that SIGPIPE ended: Python ignores that signal
USAGE = """agentshim: an OCI runtime that lowers what a container asks to what the host's policy allows

  as a runtime (called by an engine; options and verbs are those of runc)
    create run start state kill delete exec update pause resume ps events list features checkpoint restore
  for people
    agentshim explain BUNDLE|CONTAINER [--policy NAME|FILE] [--json]
    agentshim audit tail [-n N] | show CONTAINER [--json] [--follow]
    agentshim flows|denied CONTAINER [--json] [--follow]
    agentshim why CONTAINER [PROTO:]HOST:PORT
    agentshim lease egress CONTAINER PROTO:HOST:PORT --ttl 10m --why TEXT | list [CONTAINER] | revoke CONTAINER PEER
    agentshim net up | down | gc | show | export --prometheus FILE
    agentshim policy list|show|check|compile|lint|locks|table
    agentshim install docker|containerd|podman|crio [--policy NAME] [--set-as-default] [--dry-run] [--reload]
    agentshim uninstall docker|containerd|podman|crio [--policy NAME] [--force] [--dry-run] [--reload]
    agentshim doctor [--json]
    agentshim --version
"""


def run(call: Call, context: Context) -> int:
    """The exit code of one of our own commands; READER_GONE if nobody reads what it says. Raises ShimError."""
    if call.verb not in UNAIDED:
        site.enable()
    code = READER_GONE
    try:
        code = _answer(call, context)
    except BrokenPipeError:
        pass
    finally:
        is_read = _flush()
    return code if is_read else READER_GONE


def _answer(call: Call, context: Context) -> int:
    if call.verb in RECORDS and os.geteuid() != 0:
        raise HostError(call.verb, "user", f"uid {os.geteuid()}", "root", "run it as root: records are root's")
    if call.verb == "explain":
        from shim.cold import explain

        return explain.main(call.args)
    if call.verb == "audit":
        from shim.cold import audit

        return audit.main(call.args)
    if call.verb in argv.ENGINES:
        if os.geteuid() != 0:
            raise HostError(call.verb, "user", f"uid {os.geteuid()}", "root", "run it as root: it edits root's files")
        from shim.cold.install import install

        return install.main(call.verb, call.args, context.execfn)
    if call.verb == "net":
        from shim.cold.network import network_of_host

        return network_of_host.main(call.args)
    if call.verb in argv.NETWORK:
        from shim.cold.network import net

        return net.main(call.verb, call.args)
    if call.verb == "doctor":
        from shim.cold import doctor

        return doctor.main(call.args)
    if call.verb == "complete":
        from shim.cold import complete

        return complete.main(call.args)
    if call.verb == "policy":
        from shim.cold.policy import policies

        return policies.main(call.args)
    sys.stdout.write(version() if call.verb == "version" else USAGE)
    return 0


def _flush() -> bool:
    """Writes what is left of the output, or drops it: at its end the interpreter would say in its own way that it could
    not. False if nobody reads; HostError if it cannot be written for another reason.
    """
    if sys.stdout is None:  # closed by the caller
        return True
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise HostError("front", "stdout", reason(error), "an output that takes all", "make room there") from None
        return False
    return True


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
