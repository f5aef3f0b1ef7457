"""`agentshim install ENGINE` and `agentshim uninstall ENGINE`: the engine's own file, edited so that it can be undone.

Belongs here: the command line, and what an install is made of. Next door: `uninstall`; `sites` (which file),
`engines` (where in it), `registration` (what is written), `changes` (how), `calls` (what runs).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

from shim import hostpaths, policy
from shim.cold.audit import to_any_terminal
from shim.cold.install import calls, changes, registration, sites, toml_text, turn, uninstall
from shim.cold.install.changes import Content, Directory, File, Link, Step
from shim.cold.install.engines import ENGINES, NAME, Engine
from shim.cold.policy import compile as cold
from shim.errors import HostError, Refused, printable


def main(verb: str, argv: list[str], execfn: str, etc: str = policy.ETC, var: str = policy.VAR) -> int:
    """Runs `agentshim VERB ARGV…`; the exit code. Raises ShimError, and then nothing has changed, unless it is of
    `--reload`. `execfn`: the path by which we were called.
    """
    args = _parser(verb).parse_args(argv)
    with contextlib.nullcontext() if args.dry_run else turn.alone():
        _run(verb, args, execfn, etc, var)
    return 0


def _run(verb: str, args: argparse.Namespace, execfn: str, etc: str, var: str) -> None:
    engine = ENGINES[args.engine]
    installs = verb == "install"
    steps, told, path = (
        plan(engine, args, execfn, policy.config(etc, var)) if installs else uninstall.plan(engine, args)
    )
    doc = engine.syntax.parse(changes.read(path).text, path)
    what = calls.reloader(engine, doc, path) if args.reload and steps else None
    if args.dry_run:
        _show(steps)
    else:
        turn.sweep({path, changes.backup_of(path), *(one.path for one in steps if isinstance(one, Content))})
        changes.apply(steps)
    if not args.dry_run or not steps:
        print("\n".join(map(printable, told)))
    if steps and args.reload and not args.dry_run:
        calls.reload(what)
        print(f"reloaded: {engine.name}")
    elif steps:
        print(f"reload: {printable(calls.how(engine, doc))}")


def _show(steps: list[Step]) -> None:
    """What `steps` would do: as patch(1) needs it, or, on a terminal, without what would steer that."""
    lines = (line for step in steps for line in step.describe())
    if sys.stdout.isatty():
        to_any_terminal()
        lines = ("\t".join(map(printable, line.removesuffix("\n").split("\t"))) + "\n" for line in lines)
    sys.stdout.writelines(lines)


def _parser(verb: str) -> argparse.ArgumentParser:
    told = {"install": "register agentshim with an engine", "uninstall": "take agentshim out of an engine's file"}
    parser = argparse.ArgumentParser(prog=f"agentshim {verb}", description=told[verb])
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("--dry-run", action="store_true", help="print what would change, as a unified diff")
    parser.add_argument("--reload", action="store_true", help="make the running engine read it")
    parser.add_argument("--config", metavar="FILE", help="the engine's file, where it is not the usual one")
    if verb == "install":
        parser.add_argument("--set-as-default", action="store_true", help="for containers that name no runtime")
        more = "register agentshim-NAME too, whose containers have the policy NAME"
    else:
        parser.add_argument("--force", action="store_true", help="even if containers run by agentshim")
        more = "take out agentshim-NAME alone"
    parser.add_argument("--policy", metavar="NAME", action="append", default=[], help=more + " (several times)")
    return parser


def plan(
    engine: Engine, args: argparse.Namespace, execfn: str, config: policy.Config
) -> tuple[list[Step], list[str], str]:
    """(steps, lines for the person, the engine's file). The links come first and that file last: an engine never sees a
    runtime that is not there.
    """
    launcher = _launcher(execfn)
    directory = os.path.dirname(launcher)
    for name in args.policy:
        _check_policy(name, config)
    linked = {f"{policy.PREFIX}{name}": f"{directory}/{policy.PREFIX}{name}" for name in args.policy}
    names = {NAME: launcher, **linked}
    site = sites.choose(engine, args.config)
    file, default = site.file, args.set_as_default
    if engine.name == "docker":
        doc = engine.syntax.parse(file.text, file.path)
        calls.check_flags(doc, file.path, bool(args.config), default)
    text = registration.register(engine, file.text, names, default, file.path, site.around)
    if default:
        sites.check_default(engine, site)
    steps: list[Step] = [link for path in linked.values() if (link := _link(path, launcher))]
    steps += [*_chosen_by_link(args.policy, config), *_edit(engine, file, text)]
    said = f"{', '.join(names)}" + (f"; default runtime: {NAME}" if default else "")
    told = [f"{file.path}: {said}" if text != file.text else f"{file.path}: nothing to change: {said}"]
    if text != file.text and file.status is not None:
        told.append(f"as it was before: {changes.backup_of(file.path)}")
    return steps, told, file.path


def _launcher(execfn: str) -> str:
    """The executable that engines are to call: the one that was called, or agentshim beside it."""
    path = os.path.join(os.path.dirname(os.path.abspath(execfn)), NAME)
    if not hostpaths.program(path) or not hostpaths.resolve(path)[1]:
        todo = "install it where only root can write (make install), and call it there"
        raise HostError("install", path, "the runtime of an engine", "a program that only root can change", todo)
    return path


def _check_policy(name: str, config: policy.Config) -> None:
    """Refused for a policy that no container could have: unknown, or above the host limit. Invalid if it is wrong."""
    policy.check_name(name, config)
    if name not in policy.BUILTIN:
        policy.check_directories(config)
    cold.compile(name, config)


def _link(path: str, launcher: str) -> Link | None:
    """The link that selects a policy by its name; None where it is there."""
    if not os.path.lexists(path):
        return Link(path, NAME)
    if os.path.realpath(path) != os.path.realpath(launcher):
        raise Refused("install", path, f"a link to {NAME}", "something else, which is there", "move it away")
    return None


def _chosen_by_link(wanted: list[str], config: policy.Config) -> list[Step]:
    """What policy.select wants of a policy that a link names: to be in `names` of our own config.toml."""
    missing = [one for one in dict.fromkeys(wanted) if one not in config.names]
    if not missing:
        return []
    file = changes.read(config.etc + "/config.toml")
    text = toml_text.put(file.text, ("names",), [*config.names, *missing], file.path)
    return [*_directory(file.path), Content(file.path, file.data if file.status else None, file.encoded(text))]


def _edit(engine: Engine, file: File, text: str) -> list[Step]:
    """The steps that make `text` of `file`. What was there before our first line in it stays beside it."""
    if text == file.text:
        return []
    if file.status is None:
        head = registration.MARK.format(engine.name) if engine.syntax is toml_text else ""
        return [*_directory(file.path), Content(file.path, None, (head + text).encode())]
    steps: list[Step] = []
    if not registration.ours(engine, engine.syntax.parse(file.text, file.path), file.path):
        old = changes.read(changes.backup_of(file.path))
        steps.append(Content(old.path, old.data if old.status else None, file.data, like=file.path, shown=False))
    return [*steps, Content(file.path, file.data, file.encoded(text))]


def _directory(path: str) -> list[Step]:
    directory = os.path.dirname(path)
    return [] if os.path.isdir(directory) else [Directory(directory)]
