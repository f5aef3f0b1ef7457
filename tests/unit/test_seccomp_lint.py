"""`policy lint`: each thing that a delegate would lose or turn around, by a profile that has just that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shim.cold import lint_seccomp
from shim.errors import HostError, Invalid
from tests.unit import seccomp_inputs as inputs
from tests.unit.seccomp_inputs import NATIVE, rule


def found(default: str, *rules: dict[str, Any], **more: Any) -> list[tuple[int, str]]:
    tree = {"defaultAction": f"SCMP_ACT_{default}", "syscalls": list(rules), **more}
    return [(one.rule, one.code) for one in lint_seccomp.lint_json(tree)]


READ = rule("read", "ALLOW")
CASES: dict[str, tuple[list[tuple[int, str]], list[tuple[int, str]]]] = {
    "nothing": (found("ERRNO", READ), []),
    "equal to the default": (found("ERRNO", READ, rule("bpf", "ERRNO")), [(1, "equals-default")]),
    "another errno": (found("ERRNO", READ, rule("bpf", "ERRNO", errno=38)), []),
    "a lost denial": (found("ALLOW", rule("brandnew", "ERRNO")), [(0, "unknown-name")]),
    "a misspelt allow": (found("ERRNO", rule("raed", "ALLOW")), [(0, "unknown-name")]),
    "unconditional beside conditional": (
        found("ERRNO", rule("personality", "ALLOW"), rule("personality", "TRAP", (0, "MASKED_EQ", 0xFF, 8))),
        [(1, "conditional-lost")],
    ),
    "two unconditional": (found("ALLOW", rule("bpf", "ERRNO"), rule("bpf", "KILL")), [(1, "second-lost")]),
    "one argument twice": (
        found("ERRNO", rule("mmap", "ALLOW", (1, "GE", 3), (1, "LE", 5))),
        [(0, "argument-twice")],
    ),
    "overlapping ranges": (
        found("TRAP", rule("mmap", "ALLOW", (1, "GE", 3)), rule("mmap", "ERRNO", (1, "GE", 5))),
        [(1, "overlap")],
    ),
    "the same condition twice": (
        found("ALLOW", rule("mmap", "ERRNO", (1, "EQ", 3)), rule("mmap", "KILL", (1, "EQ", 3))),
        [(-1, "not-compiled"), (1, "contradiction")],
    ),
    "a denial by int": (found("ALLOW", rule("socket", "ERRNO", (0, "EQ", 17))), [(0, "unmasked-int")]),
    "a masked denial": (found("ALLOW", rule("socket", "ERRNO", (0, "MASKED_EQ", 0xFFFFFFFF, 17))), []),
    "an int by range": (found("ERRNO", rule("socket", "ALLOW", (0, "GT", 40))), [(0, "unmasked-int")]),
    "an int by NE": (found("ERRNO", rule("socket", "ALLOW", (0, "NE", 40))), [(0, "unmasked-int")]),
    "an int by EQ": (found("ERRNO", rule("socket", "ALLOW", (0, "EQ", 1))), []),
    "a range on a size": (found("ERRNO", rule("mmap", "ALLOW", (1, "GT", 40))), []),
    "several ABIs": (found("ERRNO", READ, architectures=[NATIVE, inputs.X86]), [(-1, "several-abis")]),
    "Docker's several ABIs": (
        found("ERRNO", READ, archMap=[{"architecture": NATIVE, "subArchitectures": [inputs.X32]}]),
        [(-1, "several-abis")],
    ),
    "NOTIFY for all": (found("NOTIFY", READ), [(-1, "notify-default")]),
    "a listener": (found("ERRNO", READ, listenerPath="/run/x"), [(-1, "listener")]),
}


@pytest.mark.parametrize("name", CASES)
def test_findings(name: str) -> None:
    got, wanted = CASES[name]
    assert got == wanted


def test_conditions_on_capabilities_are_read_both_ways() -> None:
    """Two rules that exclude each other are fine; two that meet under a capability are not."""
    cap = {"includes": {"caps": ["CAP_SYS_ADMIN"]}}
    without = {"excludes": {"caps": ["CAP_SYS_ADMIN"]}}
    plain, parted = rule("mmap", "ALLOW"), rule("mmap", "ALLOW", (1, "EQ", 3))
    assert found("ERRNO", {**plain, **cap}, {**parted, **without}) == []
    assert found("ERRNO", {**plain, **cap}, parted) == [(1, "conditional-lost")]


def test_too_many_instructions() -> None:
    rules = [
        rule("mmap mremap munmap", "ALLOW", (1, "EQ", n << 32 | n * 3), (0, "EQ", n << 33 | 1)) for n in range(700)
    ]
    assert (-1, "too-long") in found("ERRNO", *rules)


def test_the_shared_profiles() -> None:
    """What engines ship: several ABIs, ranges on ints, and a denial of setns that comes too late."""
    for name, wanted in (
        ("moby-default.json", {"several-abis", "unmasked-int"}),
        ("containers-common.json", {"several-abis", "unmasked-int", "second-lost"}),
    ):
        inputs.shared(name, "")
        every = lint_seccomp.lint(str(inputs.SHARED / name))
        assert wanted <= {one.code for one in every}
        assert all("\n" not in str(one) and len(str(one)) < 400 for one in every)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("raed", "ALLOW")]}))
    assert lint_seccomp.main(str(path)) == 1
    assert capsys.readouterr().out.startswith(f"{path}: rule 0: unknown-name: raed")
    assert lint_seccomp.main("agent") == 0
    with pytest.raises(HostError):
        lint_seccomp.main(str(tmp_path / "none"))
    path.write_text('{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["a"]}]}')
    with pytest.raises(Invalid, match=r"syscalls\[0\]\.action"):
        lint_seccomp.main(str(path))
