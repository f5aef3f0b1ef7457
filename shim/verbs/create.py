"""create, run and restore: the verbs that read a bundle. Reads it, decides, writes it, and becomes the delegate."""

from __future__ import annotations

import posix

from shim import argv, audit, bundle, hostpaths, kernel, plan, policy, product, runc, spec, state, wire
from shim.dim import mounts, namespaces
from shim.verbs import gate, lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.argv import Call
    from shim.cli import Context
    from shim.kernel import Facts
    from shim.policy import Config, Policy

CONFIG = "config.json"
# Sections that exec and update need again; the rest of a policy is found by its name and digest.
KEPT = ("capabilities", "lsm", "user", "rlimits", "scheduling", "process", "invocation", "resources")
# What of the process exec falls back to where its own process.json is silent.
KEPT_PROCESS = ("capabilities", "noNewPrivileges", "rlimits", "apparmorProfile", "selinuxLabel", "oomScoreAdj")


def run(call: Call, context: Context) -> int:
    """Never returns when the container is allowed: the delegate takes our place. Raises ShimError otherwise."""
    entry = context.entry = audit.begun(call)
    container = argv.check_id(call.args[0] if call.args else "")
    gate.require_host_root()
    config = policy.config()
    entry.on_failure = config.audit_log
    delegate = runc.find(config)
    env = runc.environment()
    directory = bundle.Directory(str(call.options.get("bundle") or posix.getcwd()))
    data, status = directory.read(CONFIG)
    asked, dropped = spec.check(wire.loads(data, "bundle", CONFIG), config.unknown_keys)
    chosen = policy.load(policy.select(config, context.execfn, asked.get("annotations") or {}), config)
    root = state.root_of(call.root, delegate.kind, env)
    told = {"policy": chosen.name, "digest": chosen.digest, "mode": config.mode}
    told["name"] = audit.name_of(asked, container, directory.path)
    entry.of(root, told)

    invocation = runc.asked(env, call)
    facts = kernel.gather(asked, hostpaths.real(directory.path), invocation)
    facts.launcher, facts.locker = gate.launcher(), gate.program("agentshim-net")
    ceiling = product.from_policy(chosen.sections)
    locked = lock.decide(asked, ceiling, chosen.sections.get("network"), facts, config.mode, container)
    lent = ((state.HOSTS, locked.hosts), (state.RESOLVER, locked.resolver))
    facts.hosts = tuple(kernel.hosts_mount(state.hosts_path(root, container, kind)) for kind, data in lent if data)
    # Where the policy lets a container mount anything, or only watches, an exchange gains nothing.
    pins = _pins(asked, facts) if ceiling["mounts"] != mounts.TOP and config.mode != "audit" else {}
    admit = gate.Admitter(delegate)
    if locked.plan or locked.link:
        _after_the_last(root, container, config)
    end: tuple[str, ...] = ()  # of a network of ours: its plan, the file that keeps its address, a claim on it
    if locked.link or locked.lease:
        gate.bring("link")
        from shim.verbs import link  # and all that makes one: most networks are an engine's, or nobody's

        if locked.link:
            locked, address = link.lay(locked, chosen, config, asked, root, container)
            end = (state.lock_path(root, container), address)
        else:
            end = link.join(locked.lease, state.name_of(root, container))
    try:
        hooks = _hooks(facts, pins, locked.plan, end, root, container)
        made = plan.make(asked, ceiling, facts, admit, config.mode, hooks=hooks)
        unseen = admit.unseen if config.mode != "audit" else ""
        if unseen and call.verb == "run" and delegate.kind == "runc":
            made = plan.with_last_look(made, facts.our_hook(root, container, kernel.FILTER), facts)
        out = made.data if made.data is not None or not dropped else wire.dumps(made.spec)

        record = {**_record(directory.path, config, chosen, made, pins), **told}
        record["network"] = locked.section
        record.update({key: one for key, one in (*zip(("address", "claim"), end[1:]), ("unseen", unseen)) if one})
        waits = bool(unseen) and call.verb == "create"
        state.claim(root, container, record, data, locked.plan, locked.hosts, waits, locked.resolver)
        entry.granted(audit.lowered(made), audit.objections(made, config.mode), audit.denied(made))
        directory.tidy(CONFIG)
        if out is not None and out != data:
            directory.replace(CONFIG, out, status)
        granted = made.granted["invocation"] if config.mode != "audit" else invocation
        runc.execute(delegate, runc.lowered(call, granted), env, granted, context.ignored)
    finally:  # nothing was run
        if locked.lease:
            link.withdraw(end[-1], config.mark)
        elif end:
            state.unlink(end[-1])


def _after_the_last(root: str, container: str, config: Config) -> None:
    """Ends the last container of this id, if its hook has not: that would take our plan for its own."""
    before = state.load(root, container)
    if before and state.is_leaving(before):
        from shim.cold.network import net_down

        net_down.gc(mark=config.mark)


def _hooks(
    facts: Facts, pins: dict[str, Any], steps: bytes, end: tuple[str, ...], root: str, container: str
) -> tuple[dict[str, Any], ...]:
    """Those of ours: a look at what was mounted, the end of a network of ours, and what is done in any network."""
    looks = [facts.our_hook(root, container)] if any(pins.values()) else []
    ends = [facts.unlock_hook(*end)] if end else []
    return (*looks, *ends, *([facts.lock_hook(state.lock_path(root, container))] if steps else ()))


def _record(path: str, config: Config, chosen: Policy, made: plan.Plan, pins: dict[str, Any]) -> dict[str, Any]:
    process = made.spec["process"]
    out: dict[str, Any] = {
        "bundle": hostpaths.real(path),
        "rootfs": hostpaths.real(hostpaths.join(path, made.spec["root"]["path"])),
        "sections": {name: chosen.sections[name] for name in KEPT if name in chosen.sections},
        "process": {name: process[name] for name in KEPT_PROCESS if name in process},
        "pins": pins,
    }
    if config.mode == "audit":
        out["would_lose"] = [[room, *loss.key()] for room, loss in made.losses()]
    return out


def _pins(asked: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """What someone else could exchange between our look and the delegate's, for the hook to compare with what is there.

    `mounts`: [place, identities] of the root and of each bind, [] where no volume is: the source's own identity first,
    then what a recursive bind brings along; `loose`: [identity, must be read-only] of what may lie elsewhere, where a
    link of the image led the engine's files; `namespaces`: [kind, 'at:device:inode'] of each that is named by a path
    that others can change, or below /proc, where a number may come to mean another process.
    """
    root = facts.sources[mounts.root_key(asked["root"]["path"])]
    binds = [mount for mount in asked.get("mounts") or () if mounts.is_bind(mount)]
    found = [(mounts.destination_of(mount), facts.sources[mount.get("source") or ""]) for mount in binds]
    lent = [[kind, there] for (kind, path), there in facts.namespaces.items() if not hostpaths.resolve(path)[1]]
    pins: dict[str, Any] = {"mounts": [], "loose": [], "namespaces": [one for one in lent if one[1] != namespaces.HOST]}
    if facts.places and (not root.steady or any(source.kind in ("volume", "socket") for _, source in found)):
        identities = facts.places.expected
        pins["mounts"] = [[place, identities(source.real)] for place, source in (("/", root), *found)]
        pins["mounts"] += [[one["destination"], identities(one["source"])] for one in facts.hosts]
        pins["loose"] = [
            [identities(source.real)[0], source.kind == "system"]
            for _, source in found
            if source.kind in ("engine", "system") and not source.directory
        ]
    return pins
