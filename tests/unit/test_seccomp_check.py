"""Malformed seccomp objects: each is refused in one line that names the place."""

from __future__ import annotations

import time
from typing import Any

import pytest

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
