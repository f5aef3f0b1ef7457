"""Malformed seccomp objects: each is refused in one line that names the place."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim import wire
from shim.cold import lint_seccomp, seccomp_source
from shim.dim import seccomp
from shim.errors import Invalid, ShimError
from shim.kernel import Facts
from shim.seccomp.check import check
from shim.seccomp.profile import Profile

READ = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
ARG = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}


def with_rule(rule: Any) -> Any:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [READ, rule]}


def with_arg(**change: Any) -> Any:
    arg = {name: value for name, value in {**ARG, **change}.items() if value is not ...}
    return with_rule({**READ, "args": [arg]})


BAD: dict[str, tuple[Any, str]] = {
    "a list": ([], "linux.seccomp"),
    "a string": ("unconfined", "linux.seccomp"),
    "no default": ({"syscalls": [READ]}, "linux.seccomp.defaultAction"),
    "unknown default": ({"defaultAction": "SCMP_ACT_MAYBE"}, "linux.seccomp.defaultAction"),
    "default errno below": (
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1},
        "linux.seccomp.defaultErrnoRet",
    ),
    "default errno above": (
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096},
        "linux.seccomp.defaultErrnoRet",
    ),
    "architecture": ({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["VAX"]}, "linux.seccomp.architectures[0]"),
    "architectures": ({"defaultAction": "SCMP_ACT_ERRNO", "architectures": "X86"}, "linux.seccomp.architectures"),
    "flag": ({"defaultAction": "SCMP_ACT_ERRNO", "flags": ["FAST"]}, "linux.seccomp.flags[0]"),
    "unknown key": ({"defaultAction": "SCMP_ACT_ERRNO", "archMap": []}, "linux.seccomp.archMap"),
    "key of another case": ({"defaultAction": "SCMP_ACT_ERRNO", "Syscalls": []}, "linux.seccomp.Syscalls"),
    "listener": ({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": 1}, "linux.seccomp.listenerPath"),
    "rules": ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": {}}, "linux.seccomp.syscalls"),
    "rule is a string": (with_rule("read"), "linux.seccomp.syscalls[1]"),
    "rule of Docker's form": (with_rule({**READ, "includes": {}}), "linux.seccomp.syscalls[1].includes"),
    "no names": (with_rule({"action": "SCMP_ACT_ALLOW"}), "linux.seccomp.syscalls[1].names"),
    "empty names": (with_rule({**READ, "names": []}), "linux.seccomp.syscalls[1].names"),
    "number as name": (with_rule({**READ, "names": ["read", 1]}), "linux.seccomp.syscalls[1].names"),
    "no action": (with_rule({"names": ["read"]}), "linux.seccomp.syscalls[1].action"),
    "unknown action": (with_rule({**READ, "action": "SCMP_ACT_allow"}), "linux.seccomp.syscalls[1].action"),
    "action is a list": (with_rule({**READ, "action": []}), "linux.seccomp.syscalls[1].action"),
    "errno": (with_rule({**READ, "errnoRet": True}), "linux.seccomp.syscalls[1].errnoRet"),
    "args": (with_rule({**READ, "args": {}}), "linux.seccomp.syscalls[1].args"),
    "arg": (with_rule({**READ, "args": [1]}), "linux.seccomp.syscalls[1].args[0]"),
    "index 6": (with_arg(index=6), "linux.seccomp.syscalls[1].args[0].index"),
    "index -1": (with_arg(index=-1), "linux.seccomp.syscalls[1].args[0].index"),
    "index true": (with_arg(index=True), "linux.seccomp.syscalls[1].args[0].index"),
    "no index": (with_arg(index=...), "linux.seccomp.syscalls[1].args[0].index"),
    "value of 65 bits": (with_arg(value=2**64), "linux.seccomp.syscalls[1].args[0].value"),
    "negative value": (with_arg(value=-1), "linux.seccomp.syscalls[1].args[0].value"),
    "fraction": (with_arg(value=1.0), "linux.seccomp.syscalls[1].args[0].value"),
    "second value": (with_arg(valueTwo=2**64), "linux.seccomp.syscalls[1].args[0].valueTwo"),
    "operator": (with_arg(op="=="), "linux.seccomp.syscalls[1].args[0].op"),
    "no operator": (with_arg(op=...), "linux.seccomp.syscalls[1].args[0].op"),
    "unknown key of an arg": (with_arg(mask=1), "linux.seccomp.syscalls[1].args[0].mask"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed(name: str) -> None:
    raw, key = BAD[name]
    with pytest.raises(Invalid) as caught:
        seccomp.from_spec({"linux": {"seccomp": raw}}, Facts()) if raw else check(raw)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [None, {}])
def test_absent_null_and_empty_are_no_filter(raw: Any) -> None:
    spec = {"linux": {} if raw is None else {"seccomp": raw}}
    assert seccomp.from_spec(spec, Facts()) is seccomp.TOP


@pytest.mark.parametrize(
    "rule", [READ, {**READ, "args": [ARG] * 3}, {**READ, "args": [{**ARG, "op": "SCMP_CMP_NE"}] * 9}]
)
def test_a_hundred_thousand_rules_are_refused_at_once(rule: Any) -> None:
    raw = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [dict(rule) for _ in range(100_000)]}
    started = time.monotonic()
    with pytest.raises(Invalid, match=r"linux\.seccomp\.syscalls\[4096\]: asked 100000 rules"):
        check(raw)
    assert time.monotonic() - started < 1  # not a measurement: it must not grow with the square


def test_the_most_rules_that_are_let_in_are_met_in_bounded_time() -> None:
    rules = [
        {
            "names": [name],
            "action": "SCMP_ACT_ERRNO",
            "args": [{**ARG, "index": n % 6, "value": n * 77, "op": "SCMP_CMP_NE"}],
        }
        for n in range(1000)
        for name in ("read", "write", "ioctl", "socket")
    ]
    asked = seccomp.from_spec({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}}}, Facts())
    started = time.monotonic()
    try:
        seccomp.meet(asked, Profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules[::2]}))
    except ShimError:
        pass
    assert time.monotonic() - started < 30


# What the three doors say alike: the file or the key of the spec, then the place in the profile.
SAID: dict[str, tuple[Any, str]] = {
    "unknown action": (with_rule({**READ, "action": "SCMP_ACT_MAYBE"}), ".syscalls[1].action: asked SCMP_ACT_MAYBE"),
    "unknown default": ({"defaultAction": "PASS"}, ".defaultAction: asked PASS"),
    "unknown operator": (with_arg(op="SCMP_CMP_LIKE"), ".syscalls[1].args[0].op: asked SCMP_CMP_LIKE"),
    "unknown architecture": (
        {**with_rule(READ), "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_VAX"]},
        ".architectures[1]: asked SCMP_ARCH_VAX",
    ),
    "index above 5": (with_arg(index=6), ".syscalls[1].args[0].index: asked 6"),
    "a value below zero": (with_arg(value=-1), ".syscalls[1].args[0].value: asked -1"),
    "10^5 rules": (
        {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [READ] * 100_000},
        ".syscalls[4096]: asked 100000 rules",
    ),
    "10^5 names": (with_rule({**READ, "names": ["read"] * 100_000}), ".syscalls[1].names: asked 100001 names so far"),
}


def of_a_spec(data: str, path: Path) -> None:
    spec: Any = wire.loads(f'{{"linux": {{"seccomp": {data}}}}}'.encode(), "bundle", str(path))
    seccomp.from_spec(spec, Facts())


def of_a_policy(data: str, path: Path) -> None:
    path.write_text(data)
    seccomp_source.expand({"file": path.name}, str(path.parent))


def of_lint(data: str, path: Path) -> None:
    path.write_text(data)
    lint_seccomp.lint(str(path))


DOORS: dict[Callable[[str, Path], None], str] = {of_a_spec: "linux.seccomp", of_a_policy: "", of_lint: ""}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", SAID)
def test_each_door_names_the_rule(name: str, door: Callable[[str, Path], None], tmp_path: Path) -> None:
    tree, said = SAID[name]
    path = tmp_path / "p.json"
    with pytest.raises(Invalid) as caught:
        door(json.dumps(tree), path)
    assert f"seccomp: {DOORS[door] or path}{said}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("key", ["value", "valueTwo"])
def test_a_value_of_65_bits_is_named(key: str, door: Callable[[str, Path], None], tmp_path: Path) -> None:
    """The reader of JSON refuses it, whatever the key: it says the number, the file, the rule and the byte."""
    path = tmp_path / "p.json"
    place = rf"(linux\.seccomp\.)?syscalls\[1\]\.args\[0\]\.{key}"
    with pytest.raises(Invalid, match=rf"{path}: asked the number {2**64} in {place} at byte \d+, "):
        door(json.dumps(with_arg(**{key: 2**64})), path)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("text", ["", "{", "seccomp", '{"a": 1, "a": 2}', "[" * 100_000])
def test_what_is_no_json_names_the_file(text: str, door: Callable[[str, Path], None], tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(Invalid) as caught:
        door(text, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
