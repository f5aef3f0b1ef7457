"""update: new limits for a running container, met with its policy's ceiling, key by key."""

from __future__ import annotations

import posix

from shim import argv, audit, bundle, hostpaths, kernel, policy, runc, spec, state, wire
from shim.argv import Call
from shim.dim import resources
from shim.errors import Bug, Invalid, Refused, ShimError
from shim.verbs import gate, lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.cli import Context

# runc update(8): option -> (key under linux.resources, how its text is read).
NUMBERS = {
    "blkio-weight": "blockIO.weight",
    "cpu-period": "cpu.period",
    "cpu-quota": "cpu.quota",
    "cpu-burst": "cpu.burst",
    "cpu-rt-period": "cpu.realtimePeriod",
    "cpu-rt-runtime": "cpu.realtimeRuntime",
    "cpu-share": "cpu.shares",
    "cpu-idle": "cpu.idle",
    "pids-limit": "pids.limit",
}
BYTES = {
    "memory": "memory.limit",
    "memory-reservation": "memory.reservation",
    "memory-swap": "memory.swap",
    "kernel-memory": "memory.kernel",
    "kernel-memory-tcp": "memory.kernelTCP",
}
WORDS = {"cpuset-cpus": "cpu.cpus", "cpuset-mems": "cpu.mems"}
CACHE = ("l3-cache-schema", "mem-bw-schema")
UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def run(call: Call, context: Context) -> int:
    """Never returns when the update is allowed: the delegate reads the lowered form on its stdin."""
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
    ceiling = resources.from_policy(record["sections"].get(resources.NAME))

    asked = _asked(call, config.unknown_keys)
    _refuse(call, asked, ceiling)
    lowered = asked if record["mode"] == "audit" else resources.met_update(asked, ceiling, facts)
    if record["mode"] == "strict" and lowered != asked:
        todo = "ask for less, or raise [resources] in the policy"
        raise Refused("resources", "update", str(asked), str(lowered), todo)
    data = wire.dumps(lowered)
    _check(data, asked, ceiling, record["mode"], facts)
    granted = lowered if record["mode"] != "audit" else _watched(asked, ceiling, facts)
    entry.granted([resources.NAME] if granted != asked else [])
    _to_stdin(data)
    options = {k: v for k, v in call.options.items() if k in CACHE}
    options["resources"] = "-"
    call = Call(call.globals, call.verb, options, call.args)
    runc.execute(delegate, call, env, facts.invocation, context.ignored)


def _asked(call: Call, unknown: str) -> dict[str, Any]:
    """The resources that are asked, from stdin, a file or options: all three end in the same form."""
    source = call.options.get("resources")
    if not source:
        return _from_options(call.options)
    if source == "-":
        data = b""
        while chunk := posix.read(0, 1 << 16):
            data += chunk
            if len(data) > bundle.LIMIT:
                raise Invalid("update", "resources", "an endless stream", f"at most {bundle.LIMIT} bytes", "send less")
    else:
        directory, name = hostpaths.split(hostpaths.absolute(str(source)))
        data, _ = bundle.Directory(directory, shared=True).read(name)
    asked, _ = spec.check_resources(wire.loads(data, "update", "resources"), unknown)
    return asked


def _from_options(options: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for table, read in ((NUMBERS, _number), (BYTES, _bytes), (WORDS, _word)):
        for option, key in table.items():
            if options.get(option) not in (None, ""):
                group, _, name = key.partition(".")
                out.setdefault(group, {})[name] = read(option, str(options[option]))
    return out


def _refuse(call: Call, asked: dict[str, Any], ceiling: resources.Resources) -> None:
    if ceiling == resources.TOP:
        return
    named = [name for name in CACHE if call.options.get(name)]
    # A device rule in an update is no limit but a grant; no engine sends one.
    if asked.get("devices"):
        named.append("devices")
    if named:
        raise Refused(
            "resources", ", ".join(named), "set", "not by update", 'resources = "top" in the policy allows it'
        )


def _watched(asked: dict[str, Any], ceiling: resources.Resources, facts: Any) -> dict[str, Any]:
    """What an update would have been lowered to under a mode that takes something; `asked` where it is malformed."""
    try:
        return resources.met_update(asked, ceiling, facts)
    except ShimError:
        return asked


def _check(data: bytes, asked: dict[str, Any], ceiling: resources.Resources, mode: str, facts: Any) -> None:
    """The bytes that the delegate will read must lower nothing further when they are met again."""
    written = wire.loads(data, "update", "written")
    if mode != "audit" and resources.met_update(written, ceiling, facts) != written:  # type: ignore[arg-type]
        raise Bug("update", "resources", str(asked), "the policy's ceiling", "report this; nothing was changed")


def _to_stdin(data: bytes) -> None:
    """Descriptor 0 becomes a sealed copy of `data`: nobody can change it between our check and the delegate's read."""
    import fcntl

    fd = posix.memfd_create("resources", posix.MFD_ALLOW_SEALING)
    posix.write(fd, data)
    posix.lseek(fd, 0, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    posix.dup2(fd, 0)
    posix.close(fd)


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Invalid("update", option, text, "a number", "write an integer") from None


def _bytes(option: str, text: str) -> int:
    """A size as runc reads it: a number, or one with b, k, m, g or t behind it; -1 is unlimited."""
    word = text.strip().lower().removesuffix("b") or text
    unit = UNITS.get(word[-1:], 1)
    return _number(option, word.rstrip("kmgt")) * unit


def _word(option: str, text: str) -> str:
    return text
