"""Is a seccomp object of an OCI spec well formed? Says which rule is not.

Belongs here: shape and ranges, in one pass (0.1 ms for an engine's profile). Next door: `model` gives it a meaning.
A key that OCI does not know is refused: Docker's `includes` and `excludes` would silently make a rule unconditional.
"""

from __future__ import annotations

from shim.errors import Invalid
from shim.seccomp.vocabulary import ACTIONS, ARCHITECTURES, FLAGS, FULL64, MAX_ERRNO, MAX_NAMES, MAX_RULES, OPERATORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PROFILE = frozenset(
    ("defaultAction", "defaultErrnoRet", "flags", "listenerPath", "listenerMetadata", "architectures", "syscalls")
)
_RULE = frozenset(("names", "action", "errnoRet", "args"))
_ARG = frozenset(("index", "value", "valueTwo", "op"))


def check(profile: Any, key: str = "linux.seccomp") -> None:
    """Raise Invalid, naming the rule's index, unless `profile` is a well-formed OCI seccomp object."""
    if type(profile) is not dict:
        _bad(key, profile, "a JSON object")
    _known(key, profile, _PROFILE)
    _action(f"{key}.defaultAction", profile.get("defaultAction"))
    _errno(f"{key}.defaultErrnoRet", profile.get("defaultErrnoRet"))
    _words(f"{key}.architectures", profile.get("architectures"), ARCHITECTURES)
    _words(f"{key}.flags", profile.get("flags"), FLAGS)
    for text in ("listenerPath", "listenerMetadata"):
        if type(profile.get(text, "")) is not str:
            _bad(f"{key}.{text}", profile[text], "a string")
    _rules(f"{key}.syscalls", profile.get("syscalls"))


def _rules(key: str, rules: Any) -> None:
    """Check the list of rules; absent and null are empty, as the delegates take them."""
    if rules is None:
        return
    if type(rules) is not list:
        _bad(key, rules, "a list of rules")
    if len(rules) > MAX_RULES:
        _bad(f"{key}[{MAX_RULES}]", f"{len(rules)} rules", f"at most {MAX_RULES} rules, a filter's instructions")
    names = 0
    for index, rule in enumerate(rules):
        _rule(f"{key}[{index}]", rule)
        names += len(rule["names"])
        if names > MAX_NAMES:
            _bad(f"{key}[{index}].names", f"{names} names so far", f"at most {MAX_NAMES} names in all rules")


def _rule(key: str, rule: Any) -> None:
    """Check one rule."""
    if type(rule) is not dict:
        _bad(key, rule, "a JSON object")
    _known(key, rule, _RULE)
    names = rule.get("names")
    if type(names) is not list or not names or set(map(type, names)) != {str}:
        _bad(f"{key}.names", names, "a non-empty list of strings")
    _action(f"{key}.action", rule.get("action"))
    _errno(f"{key}.errnoRet", rule.get("errnoRet"))
    args = rule.get("args")
    if args is not None:
        if type(args) is not list or len(args) > 64:
            _bad(f"{key}.args", args, "a list of at most 64 conditions")
        for index, arg in enumerate(args):
            _arg(f"{key}.args[{index}]", arg)


def _arg(key: str, arg: Any) -> None:
    """Check one condition on an argument."""
    if type(arg) is not dict:
        _bad(key, arg, "a JSON object")
    _known(key, arg, _ARG)
    if type(arg.get("index")) is not int or not 0 <= arg["index"] <= 5:
        _bad(f"{key}.index", arg.get("index"), "an argument's number, 0 to 5")
    for name in ("value", "valueTwo"):
        value = arg.get(name, 0)
        if type(value) is not int or not 0 <= value <= FULL64:
            _bad(f"{key}.{name}", value, "an integer of 0 to 2^64-1")
    if type(arg.get("op")) is not str or arg["op"] not in OPERATORS:
        _bad(f"{key}.op", arg.get("op"), "an operator SCMP_CMP_...")


def _known(key: str, mapping: dict[str, Any], names: frozenset[str]) -> None:
    """Refuse keys that the OCI schema does not have here."""
    if not names.issuperset(mapping):
        first = next(name for name in mapping if name not in names)
        _bad(f"{key}.{first}", mapping[first], "a key of the OCI schema")


def _action(key: str, action: Any) -> None:
    if type(action) is not str or action not in ACTIONS:
        _bad(key, action, "an action SCMP_ACT_...")


def _errno(key: str, value: Any) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_ERRNO):
        _bad(key, value, f"an error number of 0 to {MAX_ERRNO}")


def _words(key: str, words: Any, known: frozenset[str]) -> None:
    """Check a list of known words, or nothing."""
    if words is None:
        return
    if type(words) is not list:
        _bad(key, words, "a list of strings")
    for index, word in enumerate(words):
        if type(word) is not str or word not in known:
            _bad(f"{key}[{index}]", word, "a name that libseccomp knows")


def _bad(key: str, asked: object, wanted: str) -> NoReturn:
    raise Invalid("seccomp", key, asked, wanted, "correct the profile")
