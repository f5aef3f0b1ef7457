"""Malformed seccomp objects: each is refused in one line that names the place."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import wire
from shim.cold.seccomp import lint_seccomp, seccomp_source
from shim.dim import seccomp
from shim.errors import Invalid, ShimError
from shim.kernel import Facts
from shim.seccomp import resolve
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


# --- Docker's form

RULE = {
    "names": ["read"],
    "action": "SCMP_ACT_ERRNO",
    "errnoRet": 38,
    "errno": "ENOSYS",
    "args": [ARG],
    "comment": "",
    "includes": {"caps": ["CAP_BPF"], "arches": ["amd64"], "minKernel": "4.8"},
    "excludes": {"caps": ["CAP_KILL"], "arches": ["s390"], "minKernel": "7.0"},
}
FORM = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "defaultErrno": "EPERM",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [READ, RULE],
}
ODD: tuple[Any, ...] = (
    5,
    -1,
    0,
    1.5,
    True,
    False,
    "x",
    "",
    [5],
    [[]],
    [{}],
    {"a": 1},
    "4",
    "4.x",
    "4.8.1",
    "-1.2",
    ["CAP_MAYBE"],
)


def places(tree: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree but its root."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(value, *path, key)


def with_place(path: tuple[Any, ...], value: Any) -> Any:
    """FORM with another value there."""
    tree: Any = copy.deepcopy(FORM)
    here = tree
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return tree


@pytest.mark.parametrize("path", list(places(FORM)), ids=lambda path: ".".join(map(str, path)))
def test_nothing_of_dockers_form_is_taken_on_trust(path: tuple[Any, ...], tmp_path: Path) -> None:
    """Whatever stands anywhere: it is read, or refused with the place; and what is read can be resolved."""
    for value in ODD:
        for door in (of_a_policy, of_lint):
            try:
                door(json.dumps(with_place(path, value)), tmp_path / "p.json")
            except Invalid as error:
                said = str(error)
                assert "\n" not in said
                assert path[0] != "syscalls" or len(path) < 3 or f"syscalls[{path[1]}]" in said, (value, said)


NAMED: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "archMap is a number": (("archMap",), 5, ".archMap: asked 5"),
    "archMap of numbers": (("archMap",), [5], ".archMap[0]: asked 5"),
    "an unknown ABI": (("archMap", 0, "architecture"), "VAX", ".archMap[0].architecture: asked VAX"),
    "ABIs beside it": (("archMap", 0, "subArchitectures"), [7], ".archMap[0].subArchitectures[0]: asked 7"),
    "minKernel is a number": (("syscalls", 1, "includes", "minKernel"), 5, ".syscalls[1].includes.minKernel: asked 5"),
    "minKernel is no version": (
        ("syscalls", 1, "excludes", "minKernel"),
        "garbage",
        ".syscalls[1].excludes.minKernel: asked garbage",
    ),
    "arches is a number": (("syscalls", 1, "includes", "arches"), 5, ".syscalls[1].includes.arches: asked 5"),
    "arches is a string": (("syscalls", 1, "includes", "arches"), "xamd64", ".syscalls[1].includes.arches: asked xam"),
    "arches of numbers": (("syscalls", 1, "includes", "arches"), [5], ".syscalls[1].includes.arches[0]: asked 5"),
    "caps is a number": (("syscalls", 1, "includes", "caps"), 5, ".syscalls[1].includes.caps: asked 5"),
    "caps of lists": (("syscalls", 1, "includes", "caps"), [[]], ".syscalls[1].includes.caps[0]: asked []"),
    "includes is zero": (("syscalls", 1, "includes"), 0, ".syscalls[1].includes: asked 0"),
    "an unknown error": (("syscalls", 1, "errno"), "EMAYBE", ".syscalls[1].errno: asked EMAYBE"),
    "an error that is a number": (("syscalls", 1, "errno"), 38, ".syscalls[1].errno: asked 38"),
    "two errors": (("syscalls", 1, "errno"), "EPERM", ".syscalls[1].errno: asked EPERM"),
    "two defaults": (("defaultErrno",), "ENOSYS", ".defaultErrno: asked ENOSYS"),
}


@pytest.mark.parametrize("door", [of_a_policy, of_lint])
@pytest.mark.parametrize("name", NAMED)
def test_what_is_wrong_in_dockers_form_is_named(name: str, door: Callable[[str, Path], None], tmp_path: Path) -> None:
    path, value, said = NAMED[name]
    with pytest.raises(Invalid) as caught:
        door(json.dumps(with_place(path, value)), tmp_path / "p.json")
    assert f"seccomp: {tmp_path / 'p.json'}{said}" in str(caught.value)


def test_an_error_by_its_name_is_that_error() -> None:
    """podman's way; Docker's is errnoRet."""
    rule = {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS"}
    tree = seccomp_source.normal({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "EACCES", "syscalls": [rule]}, "x")
    raw = resolve.resolve(tree, 0, "x86_64", (6, 1))
    assert raw["defaultErrnoRet"] == 13 and raw["syscalls"][0]["errnoRet"] == 38
    check(raw)
