"""agentshim into an engine's document, and out of it: text -> text, nothing else is touched.

Belongs here: what is ours in there, and what it takes to be rid of it. Next door: `engines` says where things are.
Ours is an entry whose name is that of the executable it leads to: agentshim, or agentshim-POLICY.
"""

from __future__ import annotations

import os
from typing import Any

from shim import policy
from shim.cold.install.engines import NAME, Doc, Engine
from shim.cold.install.toml_text import Path, get
from shim.errors import Refused

MARK = "# Written by `agentshim install {0}`; `agentshim uninstall {0}` takes it out.\n"  # a file that is all ours


def is_ours(name: str, path: str) -> bool:
    """Whether a runtime called `name` with the executable `path` was registered by us, or as we would."""
    return (name == NAME or name.startswith(policy.PREFIX)) and os.path.basename(path) == name


def ours(engine: Engine, doc: Doc, where: str) -> dict[str, str]:
    """Our runtimes in `doc`, with their executables."""
    return {name: path for name, path in engine.paths(doc, where).items() if is_ours(name, path)}


def register(
    engine: Engine, text: str, names: dict[str, str], default: bool, where: str, around: dict[str, Doc]
) -> str:
    """`text` with the runtimes `names` (name -> executable), the default among them if `default`.

    Refused where one of these names is taken by something else; Invalid as engine.syntax. What is there already stays.
    """
    syntax = engine.syntax
    doc = syntax.parse(text, where)
    engine.check(doc, where, around)
    for file, other in (*around.items(), (where, doc)):
        _check_free(engine, other, names, file)
    known = {name for file, other in (*around.items(), (where, doc)) for name in engine.paths(other, file)}
    if not default and known >= set(names):
        return text
    for path, value in engine.puts(doc, list(around.values())):
        text = syntax.put(text, path, value, where)
    doc = syntax.parse(text, where)
    like = _merged([doc, *around.values()], engine.runtimes(doc))
    if default and get(doc, engine.default(doc)) not in names:
        text = syntax.put(text, engine.default(doc), NAME, where)
    for name, executable in names.items():
        if name not in known:
            text = syntax.put(text, (*engine.runtimes(doc), name), engine.entry(like, executable), where)
    return text


def _check_free(engine: Engine, doc: Doc, names: dict[str, str], where: str) -> None:
    for name, path in engine.paths(doc, where).items():
        if name in names and path != names[name]:
            todo = "agentshim uninstall takes it out" if is_ours(name, path) else "rename it or take it out by hand"
            raise Refused("install", f"{where}: {name}", names[name], path or "an entry without a path", todo)


def _merged(docs: list[Doc], runtimes: Path) -> Doc:
    """The first of `docs`, with the runtime runc of the first that has one."""
    runc = next((found for doc in docs if (found := get(doc, (*runtimes, "runc")))), None)
    out: Any = {"runc": runc} if runc else {}
    for key in reversed(runtimes):
        out = {key: out}
    return {**docs[0], **out} if runtimes else docs[0]


def unregister(engine: Engine, text: str, gone: list[str], where: str, before: Doc | None = None) -> str:
    """`text` without the runtimes `gone`, which are ours.

    `before`: the file as it was before us, None if it is not known. Its default comes back where ours was the default
    and it still names a runtime; without one the engine's own default holds.
    """
    syntax = engine.syntax
    doc = syntax.parse(text, where)
    runtimes, default = engine.runtimes(doc), engine.default(doc)
    for name in gone:
        text = syntax.drop(text, (*runtimes, name), where)
    if get(doc, default) in gone:
        text = _reset(engine, text, default, where, before or {})
    for path in engine.extras(syntax.parse(text, where), before or {}) if gone else []:
        text = syntax.drop(text, path, where)
    for depth in range(len(runtimes), 0, -1) if gone else ():
        at = runtimes[:depth]
        if get(syntax.parse(text, where), at) == {} and get(before or {}, at) is None:
            text = _absent(engine, text, at, where, before or {})
    return text


def _absent(engine: Engine, text: str, path: Path, where: str, before: Doc) -> str:
    """`text` without `path`, or with null there, where `before` had that: JSON has two ways to say nothing."""
    above = get(before, path[:-1])
    was_null = isinstance(above, dict) and path[-1] in above and above[path[-1]] is None
    return str(engine.syntax.put(text, path, None, where) if was_null else engine.syntax.drop(text, path, where))


def _reset(engine: Engine, text: str, default: Path, where: str, before: Doc) -> str:
    old = get(before, default)
    there = {*engine.builtin, *engine.paths(engine.syntax.parse(text, where), where)}
    if isinstance(old, str) and old in there and not old.startswith(NAME):
        return str(engine.syntax.put(text, default, old, where))
    return _absent(engine, text, default, where, before)
