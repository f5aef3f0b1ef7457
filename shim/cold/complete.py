"""`agentshim complete WORD…`: what a shell may put in the place of the last word, one a line, and never an error.

`:files` among the answers asks the shell for the names of files. Belongs here: the grammar of what people type, as one
table for bash, zsh and fish (shim/completions), which only ask. A key is pressed and a person waits: nothing is
compiled, no engine is asked, no package is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from shim import argv, policy, state
from shim.errors import ShimError

FILES = ":files"
CONTAINER, POLICY, ENGINE, OTHER = "CONTAINER", "POLICY", "ENGINE", ""
ENGINES = ("docker", "containerd", "podman", "crio")
HIDDEN = ("hook", "complete")  # for the delegate and for shells
FLAG = None

ENGINE_OPTIONS = {"--dry-run": FLAG, "--reload": FLAG, "--config": FILES, "--policy": POLICY}

# Verb and verb below it -> (options with the kind of their value, kinds of the arguments; the last one repeats).
# A kind is one of the above, FILES, or several words of them.
Kinds = tuple[str, ...]
GRAMMAR: dict[tuple[str, ...], tuple[dict[str, str | None], Kinds]] = {
    ("explain",): ({"--policy": f"{POLICY} {FILES}", "--json": FLAG}, (f"{CONTAINER} {FILES}",)),
    ("policy", "list"): ({}, ()),
    ("policy", "show"): ({"--json": FLAG}, (POLICY,)),
    ("policy", "check"): ({}, (f"{POLICY} {FILES}",)),
    ("policy", "compile"): ({"--builtin": FLAG, "--output": FILES}, (POLICY,)),
    ("policy", "lint"): ({}, (FILES,)),
    ("policy", "locks"): ({}, (POLICY,)),
    ("policy", "table"): ({}, ()),
    ("flows",): ({"--json": FLAG, "--follow": FLAG}, (CONTAINER,)),
    ("denied",): ({"--json": FLAG, "--follow": FLAG}, (CONTAINER,)),
    ("why",): ({"--json": FLAG}, (CONTAINER, OTHER)),
    ("lease", "egress"): ({"--ttl": OTHER, "--why": OTHER}, (CONTAINER, OTHER)),
    ("lease", "list"): ({"--json": FLAG}, (CONTAINER,)),
    ("lease", "revoke"): ({}, (CONTAINER, OTHER)),
    ("net", "show"): ({}, ()),
    ("net", "export"): ({"--prometheus": FILES}, ()),
    ("net", "up"): ({"--pool": OTHER}, (POLICY,)),
    ("net", "down"): ({"--all": FLAG, "--force": FLAG}, (POLICY,)),
    ("net", "gc"): ({}, ()),
    ("net", "refresh"): ({"--all": FLAG}, (CONTAINER,)),
    ("net", "names"): ({}, (POLICY,)),
    ("audit", "tail"): ({"-n": OTHER, "--json": FLAG, "--follow": FLAG}, ()),
    ("audit", "show"): ({"--json": FLAG, "--follow": FLAG}, (CONTAINER,)),
    ("doctor",): ({"--json": FLAG}, ()),
    ("install",): ({**ENGINE_OPTIONS, "--set-as-default": FLAG}, (ENGINE,)),
    ("uninstall",): ({**ENGINE_OPTIONS, "--force": FLAG}, (ENGINE,)),
    ("version",): ({}, ()),
}


def main(words: list[str]) -> int:
    """Prints what may stand in the place of the last of `words`."""
    try:
        found = answers(words or [""])
    except (ShimError, OSError):
        found = []
    sys.stdout.writelines(f"{one}\n" for one in found if one.isprintable())
    return 0


def answers(words: list[str]) -> list[str]:
    """The candidates for the last of `words`, which may be empty, behind those before it."""
    *before, now = words
    while before[:1] and before[0].startswith("-"):  # options of the delegate's before the verb
        name, equals, _ = before.pop(0).lstrip("-").partition("=")
        if before and not equals and name not in argv.FLAGS:
            before.pop(0)
    if not before:
        return _starting(now, [f"--{one}" for one in argv.GLOBALS] if now.startswith("-") else verbs())
    verb, *rest = before
    if verb in argv.VERBS:
        options = [f"--{one}" for one in argv.VERBS[verb][0].split()]
        return _starting(now, options if now.startswith("-") else [])
    below = [key[1] for key in GRAMMAR if key[0] == verb and key[1:]]
    if below and not rest:
        return _starting(now, below)
    known = GRAMMAR.get((verb, *rest[:1]) if below else (verb,))
    return _starting(now, _within(*known, rest[1:] if below else rest, now)) if known else []


def _within(options: dict[str, str | None], arguments: Kinds, rest: list[str], now: str) -> list[str]:
    """What may follow the words `rest` of a verb."""
    if rest and (kind := options.get(rest[-1])) is not None:
        return _of(kind)
    if now.startswith("-"):
        return [*options, "--help"]
    given = 0
    for place, word in enumerate(rest):
        given += not word.startswith("-") and (place == 0 or options.get(rest[place - 1]) is None)
    return _of(arguments[min(given, len(arguments) - 1)]) if arguments else []


def _of(kind: str) -> list[str]:
    return [one for word in kind.split() for one in (KINDS[word]() if word in KINDS else [word])]


def _starting(now: str, found: list[str]) -> list[str]:
    return [one for one in found if one.startswith(now) or one == FILES]


def containers() -> list[str]:
    """The ids of the containers that we created."""
    return sorted(one["id"] for one in state.records())


def policies(etc: str = policy.ETC) -> list[str]:
    """The names of this host's policies, built in and its own."""
    try:
        files = os.listdir(etc + "/policies")
    except OSError:
        files = []
    return sorted({*policy.BUILTIN, *(name[:-5] for name in files if name.endswith(".toml"))})


def verbs() -> list[str]:
    """The verbs that people type: ours, and the delegate's."""
    return sorted({*argv.OURS, *argv.VERBS, "help"} - {*HIDDEN})


KINDS: dict[str, Callable[[], list[str]]] = {CONTAINER: containers, POLICY: policies, ENGINE: lambda: [*ENGINES]}
