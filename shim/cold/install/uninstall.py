"""`agentshim uninstall ENGINE`: out of the engine's files, to the byte where nobody has changed them since.

Belongs here: the verb, as steps, and what it says. Next door: `install`, and what that names.
"""

from __future__ import annotations

import argparse
from typing import Any

from shim import policy
from shim.cold.install import calls, changes, registration, sites
from shim.cold.install.changes import Content, File, Step
from shim.cold.install.engines import NAME, Doc, Engine
from shim.cold.install.toml_text import get
from shim.errors import Refused


def plan(engine: Engine, args: argparse.Namespace) -> tuple[list[Step], list[str], str]:
    """(steps, lines for the person, the file changed first). Refused while containers run by us, without --force."""
    wanted = [policy.PREFIX + one for one in args.policy]
    read = sites.files(engine, args.config)
    files = {file.path: gone for file in read if (gone := _ours(engine, file, wanted))}
    if not files:
        return [], [f"{read[0].path}: nothing of {NAME} in it"], read[0].path
    _check_running(engine, args)
    steps: list[Step] = []
    told: list[str] = []
    for path, gone in files.items():
        steps += _taken_out(engine, changes.read(path), gone, told)
    return steps, told, next(iter(files))


def _ours(engine: Engine, file: File, wanted: list[str]) -> list[str]:
    found = registration.ours(engine, engine.syntax.parse(file.text, file.path), file.path)
    return [name for name in found if not wanted or name in wanted]


def _check_running(engine: Engine, args: argparse.Namespace) -> None:
    """An engine that no longer knows a container's runtime cannot start it again, and podman not even stop it."""
    using = [one for one in calls.running(engine) if not args.policy or one["policy"] in args.policy]
    if using and not args.force:
        shown = ", ".join(str(one["id"])[:12] for one in using[:5]) + (" …" if using[5:] else "")
        todo = f"stop and remove them first ({shown}), or add --force"
        raise Refused("uninstall", engine.name, f"{len(using)} containers of {NAME}, there now", "none", todo)


def _taken_out(engine: Engine, file: File, gone: list[str], told: list[str]) -> list[Step]:
    backup = changes.read(changes.backup_of(file.path))
    before: Doc | None = engine.syntax.parse(backup.text, backup.path) if backup.status else None
    was = engine.syntax.parse(file.text, file.path)
    text = registration.unregister(engine, file.text, gone, file.path, before)
    doc = engine.syntax.parse(text, file.path)
    if not registration.ours(engine, doc, file.path):
        text = text.replace(registration.MARK.format(engine.name), "")
    told.append(f"{file.path}: without {', '.join(gone)}")
    if (default := get(doc, engine.default(doc))) != get(was, engine.default(was)):
        told.append(f"default runtime: {default or 'the one of the engine'}")
    if registration.ours(engine, doc, file.path):
        return [Content(file.path, file.data, file.encoded(_lasting(engine, text, was, gone, file, told)))]
    steps: list[Step] = []
    after: bytes | None = file.encoded(_lasting(engine, text, was, gone, file, told))
    if _is_as_before(engine, text, doc, backup.text):
        kept = _lasting(engine, backup.text, was, gone, file, [])
        after = backup.data if kept == backup.text else file.encoded(kept)
        after = after if backup.status or kept else None
        if backup.status:
            steps.append(Content(backup.path, backup.data, None, shown=False))
    elif backup.status:
        told.append(f"changed by hand since the install, and kept so; as it was before: {backup.path}")
    return [Content(file.path, file.data, after), *steps]


def _is_as_before(engine: Engine, text: str, doc: dict[str, Any], before: str) -> bool:
    """Whether `text` is what it was before us (nothing at all where there was no file), white space aside, but for that
    in strings and comments.
    """
    tries = [text, engine.syntax.drop(text, ("version",), "")] if "version" in doc else [text]
    same = [one for one in tries if _squeezed(one) == _squeezed(before)]
    return any(engine.syntax.meaning(one, "") == engine.syntax.meaning(before, "") for one in same)


def _squeezed(text: str) -> str:
    out = "".join(text.split())
    return "" if out == "{}" else out


def _lasting(engine: Engine, text: str, was: Doc, gone: list[str], file: File, told: list[str]) -> str:
    """`text`, with what a dockerd that runs must read to forget us: a reload leaves as it is whatever the file does not
    name (moby daemon/reload_unix.go), and a restart may end containers.
    """
    if engine.name != "docker" or not calls.dockerd(was)[0]:
        return text
    doc = engine.syntax.parse(text, file.path)
    left: Doc = {} if doc.get("runtimes") is not None else {"runtimes": {}}
    if was.get("default-runtime") in gone and doc.get("default-runtime") is None:
        left["default-runtime"] = engine.builtin[0]
    for key, value in left.items():
        text = engine.syntax.put(text, (key,), value, file.path)
        told.append(f"left in it, so that dockerd forgets us when it reloads: {key}")
    return text
