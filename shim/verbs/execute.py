"""exec: a further process in a container, met with the policy's ceiling and with what create granted.

Engines build process.json from their own copy of the spec: after a shim that watches create alone, a plain
`docker exec` has all of the engine's default capabilities back.
"""

from __future__ import annotations

from shim import argv, audit, bundle, hostpaths, kernel, plan, policy, product, runc, spec, state, wire
from shim.argv import Call
from shim.dim import capabilities
from shim.errors import Invalid, ShimError
from shim.verbs import gate, lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cli import Context
    from shim.kernel import Facts
    from shim.policy import Config
    from shim.product import Product

# Met with what create granted too: what a container gave up stays given up.
# The user is not: `exec --user` names another, and both are bounded by the policy.
FROM_GRANTED = ("capabilities", "lsm", "rlimits", "scheduling")

# Options that process.json says instead: the delegate would ignore them beside it, or read them its own way.
IN_PROCESS = frozenset(
    ("additional-gids", "apparmor", "cap", "cwd", "env", "no-new-privs", "process", "process-label", "tty", "user")
)


def run(call: Call, context: Context) -> int:
    """Never returns when the process is allowed. Raises ShimError otherwise."""
    entry = context.entry = audit.begun(call)
    container = argv.check_id(call.args[0] if call.args else "")
    gate.require_host_root()
    config = policy.config()
    entry.on_failure = config.audit_log
    delegate = runc.find(config)
    env = runc.environment()
    root = state.root_of(call.root, delegate.kind, env)
    record = state.load(root, container) or lost.record(root, container, config)
    entry.of(root, record)

    facts = kernel.process_facts(runc.asked(env, call))
    ceiling = bound(record, facts)
    if record["mode"] == "audit" or all(ceiling[dim.NAME] == dim.TOP for dim in product.EXEC):
        entry.granted(*(_watched(call, record, config, ceiling, facts, delegate) if record["mode"] == "audit" else ()))
        runc.execute(delegate, call, env, facts.invocation, context.ignored)
    asked, place = _asked(call, record, config.unknown_keys)
    wrapped = {"process": {**_inherited(record), **asked}}
    made = plan.make(wrapped, ceiling, facts, gate.Admitter(delegate), record["mode"], product.EXEC)
    data = wire.dumps(made.spec["process"])
    entry.granted(audit.lowered(made))
    granted = made.granted["invocation"]
    kept = {name: value for name, value in call.options.items() if name not in IN_PROCESS}
    call = Call(call.globals, call.verb, {**kept, "process": _written(data, place)}, [container])
    runc.execute(delegate, runc.lowered(call, granted), env, granted, context.ignored)


def _watched(
    call: Call, record: dict[str, Any], config: Config, ceiling: Product, facts: Facts, delegate: runc.Delegate
) -> tuple[list[str], str]:
    """What a process would have lost under a mode that takes something, and what would have refused it."""
    try:
        asked, _ = _asked(call, record, config.unknown_keys)
        wrapped = {"process": {**_inherited(record), **asked}}
        made = plan.make(wrapped, ceiling, facts, gate.Admitter(delegate), "audit", product.EXEC)
        return audit.lowered(made), audit.objections(made, "audit")
    except ShimError as error:
        return [], str(error)


def bound(record: dict[str, Any], facts: Facts) -> Product:
    """The ceiling for a process of the container: the policy's, met with what create granted where that is kept."""
    sections = record["sections"]
    ceiling = product.from_policy(sections, product.EXEC)
    if not record["process"]:
        return ceiling
    kept = product.from_spec({"process": record["process"]}, facts, product.EXEC)
    for dim in product.EXEC:
        # Under a ceiling of TOP the host's owner takes nothing from this dimension, at exec as at create; but where the
        # record is lost, the limit is only a guess at what the ceiling was.
        if dim.NAME in FROM_GRANTED and (ceiling[dim.NAME] != dim.TOP or "lost" in record):
            ceiling[dim.NAME] = dim.meet(ceiling[dim.NAME], kept[dim.NAME])
    return ceiling


def _asked(call: Call, record: dict[str, Any], unknown: str) -> tuple[dict[str, Any], str]:
    """The process that is asked, and the path of the file it came from ('' if it came from options)."""
    path = call.options.get("process")
    if path:
        directory, name = hostpaths.split(hostpaths.absolute(str(path)))
        data, _ = bundle.Directory(directory, shared=True).read(name)
        process, _ = spec.check_process(wire.loads(data, "exec", name), unknown)
        return process, hostpaths.join(directory, name)
    data, _ = bundle.Directory(record["bundle"]).read("config.json")
    whole, _ = spec.check(wire.loads(data, "exec", "config.json"), unknown)
    return _from_options(whole["process"], call), ""


def _from_options(process: dict[str, Any], call: Call) -> dict[str, Any]:
    """What runc makes of exec's own options: the container's process, changed by each. Source: runc exec(8)."""
    options = call.options
    out = {**process, "args": call.args[1:], "terminal": bool(options.get("tty"))}
    if not out["args"]:
        raise Invalid("exec", "args", "no command", "one at least", "name a command, or a process.json")
    if options.get("cwd"):
        out["cwd"] = options["cwd"]
    out["env"] = [*(process.get("env") or []), *_many(options, "env")]
    if options.get("user"):
        out["user"] = {**(process.get("user") or {}), **_user(str(options["user"]))}
    groups = _many(options, "additional-gids")
    if groups:
        out["user"] = {**out.get("user", {}), "additionalGids": [_number("additional-gids", one) for one in groups]}
    for option, key in (("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if options.get(option):
            out[key] = options[option]
    if options.get("no-new-privs"):
        out["noNewPrivileges"] = True
    added = _many(options, "cap")
    if added:
        sets = dict(process.get("capabilities") or {})
        for name in capabilities.SETS:
            if name != "inheritable":
                sets[name] = [*(sets.get(name) or []), *added]
        out["capabilities"] = sets
    return out


def _inherited(record: dict[str, Any]) -> dict[str, Any]:
    """What the delegate takes from the container where process.json is silent: written out, so that it is met."""
    return {name: value for name, value in record["process"].items() if name != "noNewPrivileges"}


def _written(data: bytes, place: str) -> str:
    """`data` where the engine will remove it: in place of its own file, or among our records."""
    if not place:
        return state.scratch(data)
    directory, name = hostpaths.split(place)
    opened = bundle.Directory(directory, shared=True)
    before, status = opened.read(name)
    opened.tidy(name)
    if before != data:
        opened.replace(name, data, status)
    return place


def _user(text: str) -> dict[str, int]:
    uid, colon, gid = text.partition(":")
    out = {"uid": _number("user", uid)}
    return {**out, "gid": _number("user", gid)} if colon else out


def _number(key: str, text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise Invalid("exec", key, text, "a number", "write the number: names are the image's")


def _many(options: dict[str, Any], name: str) -> list[str]:
    value = options.get(name) or []
    return list(value) if isinstance(value, (list, tuple)) else [value]
