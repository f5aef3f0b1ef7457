"""`agentshim policy list|show|check|compile|table`.

Belongs here: what these verbs print. Next door: `compile` and `policy_source` find and judge; `policy_table` words.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from shim import policy
from shim.cold.policy import compile as cold
from shim.cold.policy.policy_joins import draft, is_file
from shim.cold.policy.policy_source import SECTIONS, examine
from shim.cold.policy.policy_table import table as table
from shim.errors import Invalid, ShimError


def main(argv: list[str], etc: str = policy.ETC, var: str = policy.VAR) -> int:
    """Runs `agentshim policy ARGV…`; the exit code. Raises ShimError for what stops the whole verb."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace, str, str], int] = args.run
    return run(args, etc, var)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agentshim policy", description="the host's policies")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    one = verbs.add_parser("list", help="names, where they come from, digests, and whether they are within the limit")
    one.set_defaults(run=_list)
    one = verbs.add_parser("show", help="what a policy holds, and why")
    one.add_argument("name")
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=_show)
    one = verbs.add_parser("check", help="every fault, expired join and excess over the host limit (default: all)")
    one.add_argument("what", nargs="*", metavar="FILE|NAME")
    one.set_defaults(run=_check)
    one = verbs.add_parser("compile", help="compile ahead of the first container (default: all)")
    one.add_argument("names", nargs="*", metavar="NAME")
    one.add_argument("--builtin", action="store_true", help="the built-in policies, into the package")
    one.add_argument("--output", metavar="DIR", help="write there")
    one.set_defaults(run=_compile)
    one = verbs.add_parser(
        "lint", help="what a delegate would lose or turn around in a seccomp profile (OCI, Docker's)"
    )
    one.add_argument("profile", metavar="PROFILE", help="a JSON file, or the name of a built-in profile")
    one.set_defaults(run=_lint)
    one = verbs.add_parser("locks", help="which dimensions shut each door (default: of the built-in policies)")
    one.add_argument("names", nargs="*", metavar="NAME")
    one.set_defaults(run=_locks)
    one = verbs.add_parser("table", help="the built-in policies as the README's table")
    one.set_defaults(run=_table)
    return parser


def _table(args: argparse.Namespace, etc: str, var: str) -> int:
    sys.stdout.write(table())
    return 0


def _locks(args: argparse.Namespace, etc: str, var: str) -> int:
    from shim.cold.policy import two_locks  # libseccomp, and a filter compiled for each policy

    sys.stdout.write(two_locks.table(args.names, policy.config(etc, var)))
    return 0


def _lint(args: argparse.Namespace, etc: str, var: str) -> int:
    from shim.cold.seccomp import lint_seccomp  # libseccomp is loaded to count instructions

    return lint_seccomp.main(args.profile)


# ---------------------------------------------------------------- list


def _list(args: argparse.Namespace, etc: str, var: str) -> int:
    config = policy.config(etc, var)
    rows: list[tuple[str, ...]] = [("NAME", "FROM", "DIGEST", "WITHIN LIMIT", "CHOSEN BY")]
    rows += [_row(name, config) for name in names(config)]
    print(f"mode {config.mode}, default {config.default}, limit {config.limit}, delegate {config.delegate or 'found'}")
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def names(config: policy.Config) -> list[str]:
    """All policies of this host: built-in ones and files, sorted."""
    try:
        files = os.listdir(config.etc + "/policies")
    except OSError:
        files = []
    return sorted({*policy.BUILTIN, *(name[:-5] for name in files if name.endswith(".toml"))})


def _row(name: str, config: policy.Config) -> tuple[str, ...]:
    origin = "built-in" if name in policy.BUILTIN else cold.path_of(name, config)
    chosen = [word for word, found in _choices(name, config) if found]
    try:
        form = cold.form_of(cold.resolve(name, config))
        above = _above(form, config)
    except ShimError as error:
        return name, origin, "-", f"{type(error).__name__}: agentshim policy check {name}", ", ".join(chosen) or "-"
    within = "yes" if not above else "no: " + _few([one[0] for one in above])
    return name, origin, form["digest"][7:19], within, ", ".join(chosen) or "-"


def _few(dimensions: list[str]) -> str:
    return ", ".join(dimensions[:3]) + (f" and {len(dimensions) - 3} more" if dimensions[3:] else "")


def _choices(name: str, config: policy.Config) -> list[tuple[str, bool]]:
    return [
        ("default", name == config.default),
        ("limit", name == config.limit),
        ("name", name in config.names),
        ("annotation", name in config.annotations),
    ]


def _above(form: dict[str, Any], config: policy.Config) -> list[tuple[str, str, str]]:
    if form["name"] == config.limit:
        return []
    return cold.excess(form["sections"], cold.limits(config))


# ---------------------------------------------------------------- show


def _show(args: argparse.Namespace, etc: str, var: str) -> int:
    config = policy.config(etc, var)
    resolved = cold.resolve(args.name, config)
    form = cold.form_of(resolved)
    above = _above(form, config)
    if args.json:
        shown = {**form, "limit": config.limit, "above_limit": [one[0] for one in above], "expired": resolved.expired}
        print(json.dumps(shown, indent=2))
        return 0
    print(f"{resolved.name}: {resolved.about}")
    print(f"digest {form['digest']}")
    if above:
        print(f"above the host limit {config.limit} in {_few([one[0] for one in above])}: no container gets it")
    for name in SECTIONS:
        print("\n".join([f"\n[{name}]", *_section(resolved, name)]))
    return 0


def _section(resolved: cold.Resolved, name: str) -> list[str]:
    """A section as lines; each join with its reason below it."""
    value = resolved.sections.get(name)
    if value is None:
        return ["  bottom: nothing", *_reasons(resolved, name)]
    if value == "top":
        return ["  top: everything", *_reasons(resolved, name, exactly=True)]
    lines = [f"  {key} = {_value(one)}" for key, one in value.items() if one != {}]
    return (lines or ["  defaults"]) + _reasons(resolved, name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(json.dumps(one) if isinstance(one, dict) else str(one) for one in value) or "none"
    return json.dumps(value) if isinstance(value, dict) else str(value).lower()


def _reasons(resolved: cold.Resolved, section: str, exactly: bool = False) -> list[str]:
    out = []
    for valid, joins in ((True, resolved.why), (False, resolved.expired)):
        for dotted, reason in joins.items():
            if dotted == section or (not exactly and dotted.startswith(section + ".")):
                out.append(f"    {dotted.partition('.')[2] or section}: {said(reason)}{'' if valid else ' (EXPIRED)'}")
    return out


def said(reason: dict[str, Any]) -> str:
    """One join's reason in a line: why, by which intent, where it is written, link and end."""
    parts = [f"{reason.get('why', 'no reason given')} ({reason['at']}"]
    parts += [f", intent {reason['intent']}"] if "intent" in reason else []
    parts += [f", until {reason['expires']}"] if "expires" in reason else []
    parts += [f", {reason['doc']}"] if "doc" in reason else []
    return "".join(parts) + ")"


# ---------------------------------------------------------------- check


def _check(args: argparse.Namespace, etc: str, var: str) -> int:
    faults: list[str] = []
    try:
        config = policy.config(etc, var)
    except ShimError as error:  # a broken config is one more thing to say, not the end
        _, found = examine(etc + "/config.toml", "config")
        faults += [str(one) for one in found or [error]]
        config = policy.Config({}, etc, var)
    if not args.what:
        faults += [str(one) for one in _unknown(config)]
    for what in args.what or names(config):
        faults += _checked(what, config, of_all=not args.what)
    print("\n".join(faults) if faults else "all is well")
    return 1 if faults else 0


def _unknown(config: policy.Config) -> list[ShimError]:
    """Policies that config.toml names and that do not exist."""
    out: list[ShimError] = []
    for name in sorted({config.default, config.limit, *config.annotations, *config.names}):
        try:
            policy.check_name(name, config)
        except ShimError as error:
            out.append(error)
    return out


def _checked(what: str, config: policy.Config, of_all: bool) -> list[str]:
    """All that is wrong with one policy; prints what is only worth knowing."""
    name, file = what, None
    try:
        if is_file(what):
            name, file = draft(what, config), what
            _, faults = examine(what, "policy", trusted=False)
        else:
            policy.check_name(name, config)
            if name not in policy.BUILTIN:
                policy.check_directories(config)
            _, faults = examine(cold.path_of(name, config), "policy", trusted=name not in policy.BUILTIN)
        if faults:
            return [str(one) for one in faults]
        resolved = cold.resolve(name, config, file)
        if not resolved.sections:
            todo = 'under it every container is refused: write base = "agent", or sections'
            return [str(Invalid("policy", f"{name}: sections", "none that grants anything", "one at least", todo))]
        above = _above(cold.form_of(resolved), config)
    except ShimError as error:
        return [str(error)]
    _notes(resolved)
    if of_all and name == policy.TOP_POLICY:  # above every other limit by intention
        return []
    return [
        f"policy: {name}: {dimension}: asked {asked}, ceiling {ceiling}: void, above the host limit {config.limit}"
        for dimension, asked, ceiling in above
    ]


def _notes(resolved: cold.Resolved) -> None:
    for dotted, reason in resolved.expired.items():
        print(f"{resolved.name}: {dotted}: expired, left out: {said(reason)}")
    missing = [name for name in SECTIONS if resolved.sections.get(name) is None]
    if missing:
        print(f"{resolved.name}: sections that grant nothing: {', '.join(missing)}")


# ---------------------------------------------------------------- compile


def _compile(args: argparse.Namespace, etc: str, var: str) -> int:
    if args.builtin:
        for name in policy.BUILTIN:
            _write(f"{args.output or policy.COMPILED}/{name}.json", cold.compile_builtin(name), 0o644)
        return 0
    config = policy.config(etc, var)
    hosts = [name for name in names(config) if name not in policy.BUILTIN]
    for name in args.names or hosts:
        policy.check_name(name, config)
        if name not in policy.BUILTIN:
            policy.check_directories(config)
        _write(f"{args.output or config.var + '/policies'}/{name}.json", cold.compile(name, config), 0o600)
    return 0


def _write(path: str, form: dict[str, Any], mode: int) -> None:
    if cold.store(path, form, mode):
        print(f"{path} {form['digest']}")
    else:
        print(f"{path}: not written; it is compiled for each container", file=sys.stderr)
