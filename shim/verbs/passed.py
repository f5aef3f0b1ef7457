"""Verbs and probes that need no decision but a careful reading: the launcher passes on what it knows by heart, and
sends every other spelling here. checkpoint is among them: it is allowed or refused, and changes nothing.
"""

from __future__ import annotations

from shim import argv, kernel, policy, product, runc, state
from shim.dim import invocation
from shim.errors import joined
from shim.verbs import gate, lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.argv import Call
    from shim.cli import Context


def run(call: Call, context: Context) -> int:
    """Never returns unless refused: the delegate takes our place."""
    config = policy.config()
    delegate = runc.find(config)
    env = runc.environment()
    granted = invocation.TOP
    if call.verb == "checkpoint" and not call.probe:
        gate.require_host_root()
        container = argv.check_id(call.args[0] if call.args else "")
        root = state.root_of(call.root, delegate.kind, env)
        record = state.load(root, container) or lost.record(root, container, config)
        asked = runc.asked(env, call)
        dims = (invocation,)
        facts = kernel.process_facts(asked)
        met = product.meet(product.from_spec({}, facts, dims), product.from_policy(record["sections"], dims), dims)
        refused = product.refusals({invocation.NAME: asked}, met, dims)
        if refused and record["mode"] != "audit":
            raise joined(refused)
        granted = met[invocation.NAME] if record["mode"] != "audit" else asked
    runc.execute(delegate, runc.lowered(call, granted), env, granted, context.ignored)
