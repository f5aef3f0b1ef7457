"""`agentshim explain BUNDLE|CONTAINER [--policy P] [--json]`: what was asked, what is the ceiling, what is granted.

A bundle is a dry run: nothing is written and nothing is started. A container is explained from the spec that its create
was given, with the policy that decided then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from shim import bundle, kernel, plan, policy, product, runc, spec, state, wire
from shim.cold import describe
from shim.cold.policy import compile as cold
from shim.cold.policy.policy_joins import draft, is_file
from shim.dim import invocation
from shim.errors import Invalid, Refused, ShimError, printable
from shim.verbs import gate

# Engines that know containers by other names than the runtime does.
ENGINES = (("/usr/bin/docker", "{{.Id}}"), ("/usr/bin/podman", "{{.Id}}"), ("/usr/local/bin/nerdctl", "{{.Id}}"))

DRY_RUN = "{} is only tried: whose file it is was not looked at, as it is for an installed policy"


def main(words: list[str]) -> int:
    """Runs the command; 0, or 1 where the answer is that the container would be refused. Raises ShimError."""
    parser = argparse.ArgumentParser(prog="agentshim explain", description="what a container asks, and what it gets")
    parser.add_argument(
        "subject", metavar="BUNDLE|CONTAINER", help="a directory with a config.json, an id, a prefix or a name"
    )
    parser.add_argument(
        "--policy",
        metavar="NAME|FILE",
        help="try this policy instead of the one that applies; a file (*.toml) need not be installed",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(words)
    config = policy.config()
    if os.path.isdir(options.subject):
        told = _of_bundle(options.subject, options.policy, config)
    else:
        told = _of_container(options.subject, options.policy, config)
    sys.stdout.write(json.dumps(told, indent=2) + "\n" if options.json else _text(told))
    return 1 if told["refused"] else 0


def _of_bundle(path: str, name: str | None, config: policy.Config) -> dict[str, Any]:
    data, _ = bundle.Directory(path).read("config.json")
    return _explained(data, path, path, name, config)


def _of_container(subject: str, name: str | None, config: policy.Config) -> dict[str, Any]:
    record = find(subject)
    data = state.asked(record["root"], record["id"])
    told = _explained(data, record["bundle"], record["id"], name or record["policy"], config)
    if name is None and told["digest"] != record["digest"]:
        told["note"] = "the policy has changed since this container was created"
    return told


def find(subject: str) -> dict[str, Any]:
    """The record of a container by its id, a unique prefix of it, or the name that an engine knows. Invalid if none."""
    records = state.records()
    found = [one for one in records if one["id"] == subject]
    if not found:  # a name first: ids that begin with it can be had by trying
        known = _engine_ids(subject)
        found = [one for one in records if one["id"] in known]
    if not found:
        found = [one for one in records if one["id"].startswith(subject)]
    if len(found) == 1:
        return found[0]
    asked = f"{subject} ({len(found)} containers)" if found else subject
    todo = "give more of its id" if found else "see `docker ps` or `podman ps` for what runs"
    raise Invalid("explain", "CONTAINER", asked, "one container that agentshim created", todo)


def _engine_ids(subject: str) -> set[str]:
    out = set()
    for program, form in ENGINES:
        if subject.startswith("-") or not os.access(program, os.X_OK):
            continue
        command = [program, "container", "inspect", "--format", form, subject]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue  # an engine that does not answer knows no name
        out |= set(told.stdout.split())
    return out


def _explained(data: bytes, path: str, subject: str, name: str | None, config: policy.Config) -> dict[str, Any]:
    asked_spec, dropped = spec.check(wire.loads(data, "explain", "config.json"), config.unknown_keys)
    chosen = _policy(name, asked_spec, config)
    facts = kernel.gather(asked_spec, os.path.realpath(path), invocation.BOTTOM)
    facts.launcher, facts.locker = gate.launcher(), gate.program("agentshim-net")
    ceiling = product.from_policy(chosen.sections)
    made = plan.make(asked_spec, ceiling, facts, gate.Admitter(runc.find(config)), "audit")
    refused = [str(one) for one in product.refusals(made.asked, made.granted)] + _not_written(asked_spec, made, facts)
    losses = [_decrease(room, loss) for room, loss in made.losses()]
    if config.mode == "strict":
        refused += [f"{loss['dimension']}: {loss['key']}: mode strict refuses what it would lower" for loss in losses]
    return {
        "subject": subject,
        "policy": chosen.name,
        "digest": chosen.digest,
        "mode": config.mode,
        "dimensions": _rows(made),
        "decreases": losses,
        "refused": refused,
        "unknown_keys_dropped": dropped,
        **({"note": DRY_RUN.format(name)} if name and is_file(name) else {}),
    }


def _policy(name: str | None, asked_spec: dict[str, Any], config: policy.Config) -> policy.Policy:
    """The policy of that name or in that file, read as `policy check` reads it, else the one that applies. Raises what
    is wrong with it, the first that is above the host limit included.
    """
    if name and is_file(name):
        return policy.Policy(cold.compile(draft(name, config), config, name))
    return policy.load(name or policy.select(config, "", asked_spec.get("annotations") or {}), config)


def _not_written(asked_spec: dict[str, Any], made: plan.Plan, facts: kernel.Facts) -> list[str]:
    """What only shows when the spec is written: a dimension that finds no way to write its value."""
    try:
        product.apply_to_spec(asked_spec, made.granted, facts)
    except Refused as error:
        return [str(error)]
    except ShimError:
        raise
    return []


def _rows(made: plan.Plan) -> list[dict[str, str]]:
    return [
        {
            "dimension": dim.NAME,
            "asked": describe.words(dim.NAME, made.asked[dim.NAME]),
            "ceiling": describe.words(dim.NAME, made.ceiling[dim.NAME]),
            "granted": describe.words(dim.NAME, made.granted[dim.NAME]),
        }
        for dim in made.dims
    ]


def _decrease(room: str, loss: Any) -> dict[str, str]:
    shown = {"key": loss.key_path, "asked": loss.asked, "granted": loss.granted, "why": loss.why, "allow": loss.allow}
    return {"dimension": room, **{name: printable(value) for name, value in shown.items()}}


def _text(told: dict[str, Any]) -> str:
    lines = [f"{told['subject']}  policy {told['policy']} ({told['digest'][:12]}), mode {told['mode']}", ""]
    for row in told["dimensions"]:
        same = row["asked"] == row["granted"]
        lines.append(f"{row['dimension']:<13} asked    {printable(row['asked'])}")
        if not same:
            lines.append(f"{'':<13} ceiling  {printable(row['ceiling'])}")
        lines.append(f"{'':<13} granted  {'as asked' if same else printable(row['granted'])}")
    lines += ["", f"{len(told['decreases'])} decreases"]
    for loss in told["decreases"]:
        lines.append(f"  {loss['dimension']}: {loss['key']}: {loss['asked']} -> {loss['granted']}")
        lines.append(f"      why: {loss['why']}")
        lines.append(f"      to allow: {loss['allow']}")
    lines += [f"refused: {one}" for one in told["refused"]]
    lines += [f"note: {told['note']}"] if "note" in told else []
    return "\n".join(lines) + "\n"
