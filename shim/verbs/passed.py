"""Verbs and probes that need no decision but a careful reading: the launcher passes on what it knows by heart, and
sends every other spelling here. checkpoint is allowed or refused; start may have brought a NOTIFY_SOCKET, or be the
first with a pair of profiles, whose filter is then compared as the delegate really loaded it.
"""

from __future__ import annotations

from shim import argv, policy, runc, state
from shim.dim import invocation
from shim.errors import joined
from shim.verbs import gate, lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.argv import Call
    from shim.cli import Context

DECIDED = ("checkpoint", "start")


def run(call: Call, context: Context) -> int:
    """Never returns unless refused: the delegate takes our place."""
    config = policy.config()
    delegate = runc.find(config)
    env = runc.environment()
    granted = invocation.TOP
    if call.verb in DECIDED and not call.probe:
        gate.require_host_root()
        container = argv.check_id(call.args[0] if call.args else "")
        root = state.root_of(call.root, delegate.kind, env)
        record = state.load(root, container) or lost.record(root, container, config)
        granted = _granted(runc.asked(env, call), record)
        if call.verb == "start" and record.get("unseen"):
            _compare_filter(record)
        elif call.verb == "start":
            state.unmark_others(gate.is_seen)
    runc.execute(delegate, runc.lowered(call, granted), env, granted, context.ignored)


def _compare_filter(record: dict[str, Any]) -> None:
    """Bug, and nothing is started, if the filter in the kernel lets through what either side stops."""
    from shim.cold.seccomp import (
        first_filter,  # libseccomp and ptrace, 40 ms: once for a pair of profiles and a delegate
    )

    first_filter.compare(record)
    state.unmark(record["unseen"])


def _granted(asked: invocation.Invocation, record: dict[str, Any]) -> invocation.Invocation:
    """What the container's policy leaves of `asked`; Refused where it leaves nothing to do."""
    if record["mode"] == "audit":
        return asked
    granted = invocation.meet(asked, invocation.from_policy(record["sections"].get(invocation.NAME)))
    refused = invocation.refusals(asked, granted)
    if refused:
        raise joined(refused)  # type: ignore[arg-type]
    return granted
