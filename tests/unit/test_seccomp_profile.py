"""The door of the seccomp dimension: values, the cache, resolution against capabilities, explanation."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shim import policy
from shim.cold.seccomp import libseccomp, prove, seccomp_source
from shim.dim import seccomp
from shim.errors import HostError, Invalid
from shim.kernel import Facts
from shim.seccomp import cache, cubes, resolve
from shim.seccomp.profile import Profile
from shim.verbs import gate
from tests.unit import seccomp_inputs as inputs
from tests.unit.seccomp_inputs import NATIVE, profile, rule

FACTS = Facts()


def granted(profile: Profile, name: str) -> Any:
    entry = profile.model.calls.get(name, profile.model.rest)
    return entry[1]


def test_no_filter_asked_gives_the_ceilings() -> None:
    ceiling = inputs.ours("agent")
    got = seccomp.meet(seccomp.TOP, ceiling)
    assert got == ceiling and seccomp.meet(ceiling, seccomp.TOP) is ceiling


def test_identity_leaves_the_spec_alone() -> None:
    spec = {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}}}
    asked = seccomp.from_spec(spec, FACTS)
    assert seccomp.apply_to_spec(spec, seccomp.meet(asked, seccomp.TOP), FACTS) is spec
    assert seccomp.apply_to_spec({"linux": {}}, seccomp.TOP, FACTS) == {"linux": {}}


def test_the_requests_listener_is_gone_and_notify_is_enosys() -> None:
    asked = profile("ALLOW", rule("ptrace", "NOTIFY"), listenerPath="/run/evil", listenerMetadata="x")
    raw = seccomp.meet(asked, inputs.ours("dev", add=("ptrace",))).raw
    assert raw is not None and not {"listenerPath", "listenerMetadata"} & set(raw)
    (denied,) = [r for r in raw["syscalls"] if "ptrace" in r["names"]]
    assert denied["action"] == "SCMP_ACT_ERRNO" and denied["errnoRet"] == 38


@pytest.mark.parametrize(
    ("asked", "ceiling", "flags"),
    [
        (None, None, None),
        (None, [], []),
        (None, ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        (["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], [], []),
        (["SECCOMP_FILTER_FLAG_LOG"], ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"], ["SECCOMP_FILTER_FLAG_LOG"]),
        ([], ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"], ["SECCOMP_FILTER_FLAG_LOG"]),
    ],
)
def test_flags(asked: list[str] | None, ceiling: list[str] | None, flags: list[str] | None) -> None:
    a, b = profile("ALLOW", rule("bpf", "ERRNO")), profile("ERRNO", rule("read", "ALLOW"))
    assert a.raw is not None and b.raw is not None
    raw = seccomp.meet(Profile({**a.raw, "flags": asked}), Profile({**b.raw, "flags": ceiling})).raw
    assert raw is not None and raw.get("flags") == flags


def test_architectures_intersect_and_the_native_one_stays() -> None:
    every = profile("ALLOW", rule("bpf", "ERRNO"), archs=(NATIVE, inputs.X86, inputs.X32))
    raw = seccomp.meet(every, inputs.ours("agent")).raw
    assert raw is not None and raw["architectures"] == [NATIVE]


def test_i386_goes_where_socketcall_would_pass_a_condition() -> None:
    archs = (NATIVE, inputs.X86)
    every = profile("ERRNO", rule("socket", "ALLOW", (0, "EQ", 1)), rule("read", "ALLOW"), archs=archs)
    raw = seccomp.meet(every, profile("ALLOW", rule("bpf", "ERRNO"), archs=archs)).raw
    assert raw is not None and raw["architectures"] == [NATIVE]


def test_i386_stays_where_all_socket_calls_are_alike() -> None:
    archs = (NATIVE, inputs.X86)
    both = [profile("ALLOW", rule(name, "ERRNO"), archs=archs) for name in ("bpf", "mount")]
    raw = seccomp.meet(*both).raw
    assert raw is not None and raw["architectures"] == [*archs]


def test_enosys_for_what_libc_falls_back_from() -> None:
    raw = seccomp.meet(inputs.dockers(), inputs.ours("agent")).raw
    assert raw is not None
    errnos = {name: r["errnoRet"] for r in raw["syscalls"] if r["action"] == "SCMP_ACT_ERRNO" for name in r["names"]}
    assert {errnos[name] for name in ("clone3", "io_uring_setup", "pidfd_getfd", "fsopen")} == {38}
    assert raw["defaultErrnoRet"] == 1 and "mount" not in errnos


def test_a_second_create_changes_nothing() -> None:
    for asked in (inputs.moby(), inputs.containers_common(), seccomp.TOP, seccomp.BOTTOM, *inputs.DENY_LISTS.values()):
        for name in inputs.OURS:
            ceiling = inputs.ours(name)
            first = seccomp.meet(asked, ceiling)
            again = Profile(json.loads(json.dumps(first.raw)))
            assert seccomp.meet(again, ceiling) is again


def test_a_looser_json_of_an_equal_meaning_is_never_kept() -> None:
    """A denial without a mask reads as one with a mask: only the meet's own text may stand for the meaning."""
    plain = profile("ALLOW", rule("socket", "ERRNO", (0, "EQ", 16)))
    masked = profile("ALLOW", rule("socket", "ERRNO", (0, "MASKED_EQ", 0xFFFFFFFF, 16)))
    assert plain == masked
    assert seccomp.meet(plain, masked).raw not in (plain.raw, masked.raw)


def test_digests_follow_the_text() -> None:
    one, same = profile("ERRNO", rule("read", "ALLOW")), profile("ERRNO", rule("read", "ALLOW"))
    other = profile("ERRNO", rule("read", "ALLOW"), rule("write", "ERRNO"))
    assert one.digest == same.digest != other.digest and one == other


def test_the_cache_key_knows_both_sides_capabilities_and_delegate() -> None:
    a, b = inputs.dockers(), inputs.ours("agent")
    keys = {
        seccomp.pair_key(a, b, 0, "runc"),
        seccomp.pair_key(b, a, 0, "runc"),
        seccomp.pair_key(a, b, 1, "runc"),
        seccomp.pair_key(a, b, 0, "crun"),
        seccomp.pair_key(a, inputs.ours("web"), 0, "runc"),
    }
    assert len(keys) == 5


class Runc:
    """As much of a delegate as an Admitter asks of it."""

    kind, identity = "runc", "runc:1"


def proofs(monkeypatch: pytest.MonkeyPatch, directory: Path) -> list[str]:
    """How each pair is proved from here on: nothing is compiled, and each proof leaves a word."""
    done: list[str] = []

    def granted(asked: Profile, ceiling: Profile) -> tuple[Profile, dict[str, Any]]:
        done.append("proved")
        return profile("ERRNO", rule("read", "ALLOW")), {}

    monkeypatch.setattr(prove, "granted", granted)
    monkeypatch.setattr(gate, "PROVED", str(directory / "seccomp"))
    monkeypatch.setattr(policy, "VAR", str(directory))
    return done


def test_a_pair_is_proved_once_and_again_for_another_libseccomp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = proofs(monkeypatch, tmp_path)
    asked, ceiling = profile("ALLOW", rule("bpf", "ERRNO")), profile("ERRNO", rule("read write", "ALLOW"))
    keys = []
    for version in ("2.5.4", "2.5.4", "2.6.0"):
        monkeypatch.setattr(gate, "_library", lambda version=version: version)
        admit = gate.Admitter(Runc())  # type: ignore[arg-type]
        try:
            admit(asked, ceiling, 0)
        finally:
            seccomp._settled.clear()
        keys.append(admit.unseen)
    assert done == ["proved"] * 2 and keys[0] == keys[1] != keys[2]


def test_the_library_that_is_looked_at_is_the_one_that_is_linked() -> None:
    libseccomp.library()
    maps = Path("/proc/self/maps").read_text()
    (inode,) = {line.split()[4] for line in maps.splitlines() if "/libseccomp.so.2" in line}
    assert gate._library().split(":")[1] == inode, "libseccomp is elsewhere here: its upgrades would go unseen"


def test_rules_of_a_capability_count_where_it_is_granted() -> None:
    policy = seccomp.from_policy(inputs.section("dev"))
    without, with_it = seccomp.resolve(policy, 0), seccomp.resolve(policy, inputs.mask("SYS_CHROOT CHOWN"))
    assert granted(without, "chroot") == cubes.NONE and granted(with_it, "chroot") == cubes.EVERY
    assert without.digest != with_it.digest == seccomp.resolve(policy, inputs.mask("SYS_CHROOT")).digest
    assert seccomp.leq(without, with_it) and not seccomp.leq(with_it, without)


def test_unresolved_is_without_capabilities() -> None:
    policy = seccomp.from_policy(inputs.section("dev"))
    assert policy == seccomp.resolve(policy, 0)
    assert seccomp.from_policy("top") is seccomp.TOP and seccomp.from_policy(None) is seccomp.BOTTOM


def test_a_settled_meet_costs_no_meaning() -> None:
    asked, ceiling = profile("ERRNO", rule("read write", "ALLOW")), inputs.ours("locked")
    result = Profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []})
    seccomp.admit(asked, ceiling, result)
    try:
        assert seccomp.meet(asked, ceiling) is result
        assert seccomp.leq(Profile(dict(result.raw or {})), ceiling)
        assert asked._model is None and ceiling._model is None
    finally:
        seccomp._settled.clear()


# --- the cache


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "seccomp")


def test_what_is_stored_is_loaded(directory: str) -> None:
    one = profile("ERRNO", rule("read", "ALLOW", (0, "EQ", 2**64 - 1)))
    assert cache.load(directory, "k") is None
    cache.store(directory, "k", one, {"probes": 3})
    got = cache.load(directory, "k")
    assert got is not None and got.raw == one.raw and got.digest == one.digest and got.proof == {"probes": 3}
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700 and os.listdir(directory) == ["k"]


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    match how:
        case "cut":
            path.write_bytes(data[:-3])
        case "changed":
            path.write_bytes(data.replace(b"SCMP_ACT_ALLOW", b"SCMP_ACT_ERROR"))
        case "empty":
            path.write_bytes(b"")
        case "of another key":
            path.rename(path.with_name("k2"))
        case "writable by others":
            path.chmod(0o666)
        case "a link":
            path.rename(path.with_name("real"))
            path.symlink_to(path.with_name("real"))
        case "a fifo":
            path.unlink()
            os.mkfifo(path, 0o600)
        case "directory writable by others":
            path.parent.chmod(0o777)


HARM = (
    "cut",
    "changed",
    "empty",
    "of another key",
    "writable by others",
    "a link",
    "a fifo",
    "directory writable by others",
)


@pytest.mark.parametrize("how", HARM)
def test_a_file_that_cannot_be_trusted_is_a_miss(directory: str, how: str) -> None:
    cache.store(directory, "k", profile("ERRNO", rule("read", "ALLOW")), {})
    damage(Path(directory, "k"), how)
    assert cache.load(directory, "k2" if how == "of another key" else "k") is None


def test_a_directory_that_cannot_be_trusted_is_not_written_to(directory: str) -> None:
    os.mkdir(directory)
    os.chmod(directory, 0o777)
    with pytest.raises(HostError):
        cache.store(directory, "k", profile("ERRNO"), {})
    assert os.listdir(directory) == []


@pytest.mark.parametrize("how", [one for one in HARM if one not in ("changed", "of another key")])
def test_a_record_of_a_comparison_that_cannot_be_trusted_is_none(
    directory: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(gate, "PROVED", directory)
    monkeypatch.setattr(policy, "VAR", os.path.dirname(directory))
    assert not gate.is_seen("k")
    gate.saw("k", 3)
    assert gate.is_seen("k") and not gate.is_seen("k2")
    damage(Path(directory) / f"k{gate.SEEN}", how)
    assert not gate.is_seen("k")


def test_what_a_killed_store_has_left_is_written_over(directory: str) -> None:
    cache.store(directory, "k", profile("ERRNO"), {})
    (Path(directory) / "k").rename(Path(directory) / ".k")
    cache.store(directory, "k", profile("ERRNO"), {})
    assert os.listdir(directory) == ["k"]


# --- sources


def test_a_file_of_dockers_form(tmp_path: Path) -> None:
    tree = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": NATIVE, "subArchitectures": [inputs.X86]}],
        "syscalls": [
            {"name": "read", "names": None, "action": "SCMP_ACT_ALLOW", "args": None, "comment": ""},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
            {
                "names": ["mount"],
                "action": "SCMP_ACT_ALLOW",
                "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["arm64"]},
            },
            {"names": ["kcmp"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        ],
    }
    (tmp_path / "p.json").write_text(json.dumps(tree))
    section = seccomp_source.expand({"file": "p.json"}, str(tmp_path))
    assert section["caps"] == inputs.mask("BPF SYS_ADMIN")
    policy = seccomp.from_policy(section)

    def calls(caps: str) -> set[str]:
        return {name for name, entry in seccomp.resolve(policy, inputs.mask(caps)).model.calls.items() if entry[1]}

    assert calls("") == {"read", "mount", "ptrace"}
    assert calls("BPF SYS_ADMIN") == {"read", "bpf", "ptrace"}
    assert seccomp.resolve(policy, 0).model.archs == {NATIVE}


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ([], ""),
        ({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "X"}]}, ".syscalls[0].action"),
        (
            {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [inputs.rule("a", "ALLOW"), {"names": []}]},
            ".syscalls[1].names",
        ),
        (
            {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{**rule("a", "ALLOW"), "includes": {"caps": ["CAP_X"]}}]},
            ".syscalls[0].includes.caps[0]",
        ),
        (
            {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{**rule("a", "ALLOW"), "includes": {"cap": []}}]},
            ".syscalls[0].includes",
        ),
    ],
)
def test_a_bad_file_names_the_file_and_the_rule(tmp_path: Path, tree: Any, key: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(tree))
    with pytest.raises(Invalid) as caught:
        seccomp_source.expand({"file": "p.json"}, str(tmp_path))
    assert caught.value.key == f"{tmp_path}/p.json{key}"


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"a":1,"a":2}'])
def test_a_file_that_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(Invalid):
        seccomp_source.expand({"file": "p.json"}, str(tmp_path))


def test_a_missing_file_an_unknown_profile_and_an_unknown_group(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        seccomp_source.expand({"file": "none.json"}, str(tmp_path))
    with pytest.raises(Invalid, match="agent"):
        seccomp_source.expand({"profile": "base"}, "/")
    with pytest.raises(Invalid, match="@debug"):
        seccomp_source.expand({"profile": "agent", "add": ["@everything"]}, "/")


def test_joins_allow_for_all_arguments_and_only_that() -> None:
    plain, joined = inputs.ours("agent"), inputs.ours("agent", add=("@user-namespaces", "ptrace"))
    assert granted(joined, "clone") == granted(joined, "ptrace") == granted(joined, "mount") == cubes.EVERY
    assert seccomp.leq(plain, joined) and granted(joined, "bpf") == cubes.NONE
    tables = seccomp_source.expand({"profile": "agent", "add": [{"names": ["ptrace"], "why": "x"}]}, "/")
    assert tables == inputs.section("agent", ("ptrace",))


# --- explain


def test_explain_names_what_was_lost_within_bounds() -> None:
    asked, ceiling = inputs.dockers(), inputs.ours("locked")
    losses = seccomp.explain(asked, ceiling, seccomp.meet(asked, ceiling))
    text = "\n".join(f"{loss.asked} -> {loss.granted}" for loss in losses)
    assert "socket" in text and "more" in text and "SCMP_ARCH_X86" in text
    assert all(len(loss.asked) < 400 for loss in losses)
    assert seccomp.explain(ceiling, ceiling, ceiling) == []
    assert seccomp.explain(seccomp.TOP, seccomp.TOP, seccomp.TOP) == []
    assert seccomp.explain(seccomp.TOP, ceiling, ceiling)[0].asked == "no filter"


def test_explain_says_nothing_where_nothing_was_lost() -> None:
    ceiling = inputs.ours("agent")
    asked = seccomp.meet(inputs.dockers(), ceiling)
    assert seccomp.explain(asked, ceiling, seccomp.meet(asked, ceiling)) == []


HIT = """
import sys
sys.path.insert(0, sys.argv[1])
from shim.dim import seccomp
from shim.seccomp import cache
spec = {"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}}}
asked = seccomp.from_spec(spec, None)
ceiling = seccomp.resolve(seccomp.from_policy({"digest": "d", "caps": 0, "source": "{}"}), 5)
key = seccomp.pair_key(asked, ceiling, 5, "runc")
if not cache.load(sys.argv[2], key):
    cache.store(sys.argv[2], key, seccomp.Profile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}), {})
granted = cache.load(sys.argv[2], key)
seccomp.admit(asked, ceiling, granted)
seccomp.apply_to_spec(spec, seccomp.meet(asked, ceiling), None)
assert seccomp.leq(seccomp.from_spec(spec, None), ceiling)
print(*sorted(name for name in sys.modules if name.startswith("shim.seccomp.") or name in ("json", "re", "hashlib")))
"""


def test_a_cache_hit_imports_no_arithmetic(directory: str) -> None:
    root = str(Path(seccomp.__file__).parents[2])
    command = [sys.executable, "-I", "-S", "-c", HIT, root, directory]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert out == [f"shim.seccomp.{name}" for name in ("cache", "check", "profile", "vocabulary")]


def test_every_capability_has_its_bit() -> None:
    from shim.dim.capabilities import BIT

    header = Path("/usr/include/linux/capability.h").read_text()  # of the compiler's own headers
    bits = {name: 1 << int(bit) for name, bit in re.findall(r"^#define CAP_([A-Z_]+)\s+(\d+)$", header, re.M)}
    assert len(bits) > 40 and bits == BIT
    assert {f"CAP_{name}": bit for name, bit in bits.items()} == resolve.BITS
