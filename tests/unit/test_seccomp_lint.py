"""`policy lint`: each thing that a delegate would lose or turn around, by a profile that has just that."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from shim.cold.seccomp import libseccomp, lint_seccomp, prove
from shim.errors import HostError, Invalid
from tests.unit import seccomp_inputs as inputs
from tests.unit.seccomp_inputs import NATIVE, rule


def found(default: str, *rules: dict[str, Any], **more: Any) -> list[tuple[int, str]]:
    tree = {"defaultAction": f"SCMP_ACT_{default}", "syscalls": list(rules), **more}
    return [(one.rule, one.code) for one in lint_seccomp.lint_json(tree)]


READ = rule("read", "ALLOW")
Tree = tuple[str, list[dict[str, Any]], dict[str, Any]]  # default action, rules, what else the profile says


def tree(default: str, *rules: dict[str, Any], **more: Any) -> Tree:
    return default, list(rules), more


# name -> a minimal bad profile, what is found in it, and its good twin, in which nothing is.
TWINS: dict[str, tuple[Tree, list[tuple[int, str]], Tree]] = {
    "equal to the default": (
        tree("ERRNO", READ, rule("bpf", "ERRNO")),
        [(1, "equals-default")],
        tree("ERRNO", READ, rule("bpf", "ERRNO", errno=38)),
    ),
    "equal to the default by its number": (
        tree("ERRNO", READ, rule("bpf", "ERRNO", errno=38), defaultErrnoRet=38),
        [(1, "equals-default")],
        tree("ERRNO", READ, rule("bpf", "ERRNO"), defaultErrnoRet=38),
    ),
    "equal to the default by another name": (
        tree("KILL", READ, rule("bpf", "KILL_THREAD")),
        [(1, "equals-default")],
        tree("KILL", READ, rule("bpf", "KILL_PROCESS")),
    ),
    "a denial of an unknown name": (
        tree("ALLOW", rule("brandnew", "ERRNO")),
        [(0, "unknown-name")],
        tree("ALLOW", rule("bpf", "ERRNO")),
    ),
    "a denial of a call that is newer than libseccomp": (
        tree("ALLOW", rule("listmount", "ERRNO")),
        [(0, "unknown-name")] if libseccomp.version() == (2, 5, 4) else [],
        tree("ERRNO", READ, rule("listmount", "ERRNO", errno=38)),
    ),
    "a harder denial of an unknown name": (
        tree("ERRNO", READ, rule("listmount", "KILL")),
        [(1, "unknown-name")] if libseccomp.version() == (2, 5, 4) else [],
        tree("ERRNO", READ, rule("listmount", "ERRNO", errno=38)),
    ),
    "a misspelt allow": (tree("ERRNO", rule("raed", "ALLOW")), [(0, "unknown-name")], tree("ERRNO", READ)),
    "unconditional before conditional": (
        tree("ERRNO", rule("personality", "ALLOW"), rule("personality", "TRAP", (0, "MASKED_EQ", 0xFF, 8))),
        [(1, "conditional-lost")],
        tree("ERRNO", rule("personality", "TRAP", (0, "MASKED_EQ", 0xFF, 8))),
    ),
    "unconditional after conditional": (
        tree("ALLOW", rule("mmap", "ERRNO", (1, "EQ", 1)), rule("mmap", "ERRNO", (1, "EQ", 2)), rule("mmap", "KILL")),
        [(0, "conditional-lost"), (1, "conditional-lost")],
        tree("ALLOW", rule("mmap", "KILL")),
    ),
    "two unconditional": (
        tree("ALLOW", rule("bpf", "ERRNO"), rule("bpf", "KILL")),
        [(1, "second-lost")],
        tree("ALLOW", rule("bpf", "KILL"), rule("bpf", "KILL_THREAD")),
    ),
    "one argument twice": (
        tree("ERRNO", rule("mmap", "ALLOW", (1, "GE", 3), (1, "LE", 5))),
        [(0, "argument-twice")],
        tree("ERRNO", rule("mmap", "ALLOW", (1, "GE", 3), (5, "LE", 5))),
    ),
    "overlapping ranges": (
        tree("TRAP", rule("mmap", "ALLOW", (1, "GE", 3)), rule("mmap", "ERRNO", (1, "GE", 5))),
        [(1, "overlap")],
        tree("TRAP", rule("mmap", "ALLOW", (1, "LT", 5)), rule("mmap", "ERRNO", (1, "GE", 5))),
    ),
    "ranges that overlap since one of two conditions suffices": (
        tree("TRAP", rule("mmap", "ALLOW", (1, "GE", 3), (1, "LE", 5)), rule("mmap", "ERRNO", (1, "GT", 7))),
        [(0, "argument-twice"), (1, "overlap")],
        tree("TRAP", rule("mmap", "ALLOW", (1, "LE", 5)), rule("mmap", "ERRNO", (1, "GT", 7))),
    ),
    "the same condition with another action": (
        tree("ALLOW", rule("mmap", "ERRNO", (1, "EQ", 3)), rule("mmap", "KILL", (1, "EQ", 3))),
        [(-1, "not-compiled"), (1, "contradiction")],
        tree("ALLOW", rule("mmap", "ERRNO", (1, "EQ", 3)), rule("mmap", "ERRNO", (1, "EQ", 3))),
    ),
    "a denial by int": (
        tree("ALLOW", rule("socket", "ERRNO", (0, "EQ", 17))),
        [(0, "unmasked-int")],
        tree("ALLOW", rule("socket", "ERRNO", (0, "MASKED_EQ", 0xFFFFFFFF, 17))),
    ),
    "a masked denial that sees the high half": (
        tree("ALLOW", rule("clone", "ERRNO", (0, "MASKED_EQ", 0xFFFFFFFFFFFFFFFF, 17))),
        [(0, "unmasked-int")],
        tree("ALLOW", rule("clone", "ERRNO", (0, "MASKED_EQ", 0x10000000, 0x10000000))),
    ),
    "a denial of ints below": (
        tree("ALLOW", rule("socket", "ERRNO", (0, "LT", 17))),
        [(0, "unmasked-int")],
        tree("ALLOW", rule("socket", "ERRNO", (0, "GT", 17))),  # high bits only make it more
    ),
    "a denial of ints up to": (
        tree("ALLOW", rule("socket", "ERRNO", (0, "LE", 17))),
        [(0, "unmasked-int")],
        tree("ALLOW", rule("socket", "ERRNO", (0, "GE", 17))),
    ),
    "a denial of all but what no int is": (
        tree("ALLOW", rule("socket", "ERRNO", (0, "NE", 1 << 32 | 17))),
        [(0, "unmasked-int")],
        tree("ALLOW", rule("socket", "ERRNO", (0, "NE", 17))),
    ),
    "an int by range": (
        tree("ERRNO", rule("socket", "ALLOW", (0, "GT", 40))),
        [(0, "unmasked-int")],
        tree("ERRNO", rule("mmap", "ALLOW", (1, "GT", 40))),
    ),
    "an int by NE": (
        tree("ERRNO", rule("socket", "ALLOW", (0, "NE", 40))),
        [(0, "unmasked-int")],
        tree("ERRNO", rule("socket", "ALLOW", (0, "EQ", 1))),
    ),
    "several ABIs": (
        tree("ERRNO", READ, architectures=[NATIVE, inputs.X86]),
        [(-1, "several-abis")],
        tree("ERRNO", READ, architectures=[NATIVE]),
    ),
    "Docker's several ABIs": (
        tree("ERRNO", READ, archMap=[{"architecture": NATIVE, "subArchitectures": [inputs.X32]}]),
        [(-1, "several-abis")],
        tree("ERRNO", READ, archMap=[{"architecture": "SCMP_ARCH_ARM", "subArchitectures": [inputs.X32]}]),
    ),
    "NOTIFY for all": (tree("NOTIFY", READ), [(-1, "notify-default")], tree("ERRNO", rule("read", "NOTIFY"))),
    "a listener": (
        tree("ERRNO", READ, listenerPath="/run/x"),
        [(-1, "listener")],
        tree("ERRNO", READ, listenerPath=""),
    ),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_bad_profile_and_its_good_twin(name: str) -> None:
    (default, rules, more), wanted, (good_default, good_rules, good_more) = TWINS[name]
    assert found(default, *rules, **more) == wanted
    assert found(good_default, *good_rules, **good_more) == []


LOST = ("equals-default", "unknown-name", "conditional-lost", "second-lost")


@pytest.mark.parametrize("name", [name for name, (_, wanted, _) in TWINS.items() if {c for _, c in wanted} & {*LOST}])
@pytest.mark.skipif(platform.machine() != "x86_64", reason="LOUD: profiles here are for x86-64")
def test_what_is_said_to_be_lost_is_lost(name: str) -> None:
    """The filter is the same, instruction by instruction, without the rules that are named."""
    (default, rules, more), wanted, _ = TWINS[name]
    left = [rule for index, rule in enumerate(rules) if index not in {at for at, _ in wanted}]
    whole, without = ({"defaultAction": f"SCMP_ACT_{default}", "syscalls": some, **more} for some in (rules, left))
    assert libseccomp.compile(whole, "x86_64", 1) == libseccomp.compile(without, "x86_64", 1)


def test_conditions_on_capabilities_are_read_both_ways() -> None:
    """Two rules that exclude each other are fine; two that meet under a capability are not."""
    cap = {"includes": {"caps": ["CAP_SYS_ADMIN"]}}
    without = {"excludes": {"caps": ["CAP_SYS_ADMIN"]}}
    plain, parted = rule("mmap", "ALLOW"), rule("mmap", "ALLOW", (1, "EQ", 3))
    assert found("ERRNO", {**plain, **cap}, {**parted, **without}) == []
    assert found("ERRNO", {**plain, **cap}, parted) == [(1, "conditional-lost")]


ADMIN, CHROOT, BPF = ({"caps": [f"CAP_{name}"]} for name in ("SYS_ADMIN", "SYS_CHROOT", "BPF"))
PLAIN, PARTED = rule("mmap", "ALLOW"), rule("mmap", "ALLOW", (1, "EQ", 3))
WHEN: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "one capability and not another": ({"includes": ADMIN}, {"excludes": CHROOT}, True),
    "each without the other's": ({"includes": ADMIN, "excludes": BPF}, {"includes": CHROOT, "excludes": BPF}, True),
    "never both": ({"includes": ADMIN, "excludes": BPF}, {"includes": BPF}, False),
    "never at all": ({"includes": ADMIN, "excludes": ADMIN}, {}, False),
    "kernels before": ({"excludes": {"minKernel": "4.8"}}, {}, True),
    "kernels between": ({"includes": {"minKernel": "4.8"}}, {"excludes": {"minKernel": "5.0"}}, True),
    "kernels apart": ({"includes": {"minKernel": "5.0"}}, {"excludes": {"minKernel": "5.0"}}, False),
    "another machine": ({"includes": {"arches": ["s390x"]}}, {}, False),
    "but this machine": ({"excludes": {"arches": ["amd64", "arm64"]}}, {}, False),
}


@pytest.mark.parametrize("name", WHEN)
def test_rules_that_are_there_together_under_some_capabilities_and_kernel(name: str) -> None:
    one, other, together = WHEN[name]
    assert found("ERRNO", {**PLAIN, **one}, {**PARTED, **other}) == [(1, "conditional-lost")] * together
    assert found("ERRNO", {**PARTED, **other}, {**PLAIN, **one}) == [(0, "conditional-lost")] * together
    trap = rule("mmap", "TRAP", (1, "GE", 3))
    assert found("ERRNO", {**trap, **one}, {**PARTED, **other}) == [(1, "overlap")] * together
    kill = rule("mmap", "KILL")
    assert found("ERRNO", {**PLAIN, **one}, {**kill, **other}) == [(1, "second-lost")] * together


def test_a_filter_that_is_too_long_under_some_capabilities_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "MOST_INSTRUCTIONS", 64)
    many = [rule("mmap", "ALLOW", (1, "EQ", n << 32 | n * 3)) for n in range(40)]
    when = {"includes": ADMIN, "excludes": BPF}
    assert found("ERRNO", *({**one, **when} for one in many)) == [(-1, "too-long")]
    old = {"excludes": {"minKernel": "4.8"}}
    assert found("ERRNO", *({**one, **old} for one in many)) == [(-1, "too-long")]
    assert found("ERRNO", READ) == []


def test_too_many_instructions() -> None:
    def wide(many: int) -> list[tuple[int, str]]:
        where = [((1, "EQ", n << 32 | n * 3), (0, "EQ", n << 33 | 1)) for n in range(many)]
        return found("ERRNO", *(rule("mmap", "ALLOW", *conditions) for conditions in where))

    assert wide(1200) == [(-1, "too-long")] and wide(100) == []


def test_room_for_what_runc_puts_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "MOST_INSTRUCTIONS", 8)
    (one,) = lint_seccomp.lint_json({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [READ]})
    assert one.code == "too-long" and "4096, of which runc wants some" in one.text


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


@pytest.mark.parametrize("name", inputs.OURS)
def test_ours_by_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_seccomp.main(name) == 0 and capsys.readouterr().out == ""


def test_a_whole_config_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    seccomp = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule("raed", "ALLOW")]}
    path.write_text(json.dumps({"ociVersion": "1.0.2", "linux": {"seccomp": seccomp}}))
    assert [one.code for one in lint_seccomp.lint(str(path))] == ["unknown-name"]
    path.write_text(json.dumps({"ociVersion": "1.0.2", "linux": {}}))
    with pytest.raises(Invalid, match="a JSON object"):
        lint_seccomp.lint(str(path))


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
