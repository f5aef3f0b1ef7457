"""Which of an engine's files is to be edited, and which others it reads: they may say otherwise, before it or after.

Belongs here: choosing. Next door: `engines` knows the places, `changes` reads them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from shim.cold.install import changes, registration
from shim.cold.install.changes import File
from shim.cold.install.engines import NAME, Doc, Engine
from shim.cold.install.toml_text import get
from shim.errors import Refused


@dataclass
class Site:
    """`file`: the one to edit; `around`: the documents of the others, by path; `later`: those read after it."""

    file: File
    around: dict[str, Doc]
    later: list[str]


def choose(engine: Engine, named: str | None) -> Site:
    """Where `install` writes: a drop-in where the engine reads one, unless the main file has us already.

    `named`: the main file, if it is not the usual one. Refused and Invalid as engine.check and changes.read.
    """
    main = _main(engine, named)
    doc = engine.syntax.parse(main.text, main.path)
    engine.check(doc, main.path, {})
    if main.status is None and engine.name == "containerd":
        _check_fresh(os.path.dirname(main.path))
    drop_in = engine.drop_in_for(doc, main.path)
    is_there = not drop_in or registration.ours(engine, doc, main.path)
    file = main if is_there else changes.read(drop_in)
    order = engine.reads(doc, main.path)
    order += [file.path] if file.path not in order else []
    others = [path for path in order if path != file.path and os.path.exists(path)]
    later = [path for path in others if order.index(path) > order.index(file.path)]
    return Site(file, {path: engine.syntax.parse(_text(path), path) for path in others}, later)


def files(engine: Engine, named: str | None) -> list[File]:
    """The files that may hold us, the main one first; each is one that we may change."""
    main = _main(engine, named)
    order = engine.reads(engine.syntax.parse(main.text, main.path), main.path)
    others = [path for path in order if path not in (main.path, engine.vendor)]
    return [main, *(changes.read(path) for path in others if os.path.exists(path) and NAME in _text(path))]


def check_default(engine: Engine, site: Site) -> None:
    """Refused where a file that is read later names another default."""
    for path in site.later:
        doc = site.around[path]
        found = get(doc, engine.default(doc))
        if found not in (None, NAME):
            todo = "take it out there: the engine reads that file last"
            raise Refused("install", f"{path}: {'.'.join(engine.default(doc))}", NAME, found, todo)


def _main(engine: Engine, named: str | None) -> File:
    return changes.read(os.path.abspath(named) if named else engine.main)


def _text(path: str) -> str:
    """A file that we only look at: whoever owns it."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise changes.failed(path, error) from None


def _check_fresh(directory: str) -> None:
    """Since 2.2 containerd reads conf.d where it has no file; the file that we would make imports nothing."""
    if os.path.isdir(f"{directory}/conf.d") and os.listdir(f"{directory}/conf.d"):
        todo = f"write the main file first: containerd config default > {directory}/config.toml"
        raise Refused("install", f"{directory}/config.toml", "a new file", f"none beside {directory}/conf.d", todo)
