"""Random seccomp profiles for the laws and the proof: allow-lists and deny-lists whose conditions clash."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from shim.dim import seccomp
from shim.seccomp.profile import Profile
from tests.unit import seccomp_inputs as inputs

NAMES = ("read", "write", "socket", "clone", "ioctl", "ptrace", "personality", "mmap", "unshare", "clone3", "getpid")
VALUES = (0, 1, 2, 3, 9, 16, 38, 0x5412, 0x7E020000, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1)
DEFAULTS = ("ERRNO", "ERRNO", "ALLOW", "KILL", "KILL_PROCESS", "LOG", "TRAP")
ACTIONS = ("ALLOW", "ALLOW", "ALLOW", "ERRNO", "ERRNO", "KILL", "KILL_PROCESS", "TRAP", "LOG", "NOTIFY", "TRACE")
GENTLE = ("ALLOW", "ALLOW", "ERRNO", "LOG", "NOTIFY")
OPERATORS = ("EQ", "EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")

values = st.sampled_from(VALUES) | st.integers(0, 255) | st.integers(0, 2**64 - 1)
wild = st.tuples(st.integers(0, 2), st.sampled_from(OPERATORS), values, values)
# Sets that stay small under the meet of several: comparisons of 64 bits on one argument, a few bits on the others.
masks = st.sampled_from((1, 2, 3, 0x10, 1 << 33))
tame = st.tuples(st.just(0), st.sampled_from(OPERATORS), st.sampled_from(VALUES), st.sampled_from(VALUES)) | st.tuples(
    st.integers(1, 2), st.just("MASKED_EQ"), masks, masks
)


@st.composite
def rules(draw: st.DrawFn, condition: st.SearchStrategy[Any] = tame) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    conditions = draw(st.lists(condition, max_size=2, unique_by=lambda one: one[0]))
    # Several harder denials by argument in one call cost more cubes than their budget: only the wild ones have them.
    action = draw(st.sampled_from(GENTLE if conditions and condition is tame else ACTIONS))
    errno = draw(st.sampled_from((None, 1, 22, 38))) if action == "ERRNO" else None
    # A masked value outside of its mask holds never, which libseccomp may or may not notice: half are inside.
    inside = [(i, op, a, a & b if op == "MASKED_EQ" and a % 2 == 0 else b) for i, op, a, b in conditions]
    return inputs.rule(" ".join(names), action, *inside, errno=errno)


@st.composite
def raws(
    draw: st.DrawFn, condition: st.SearchStrategy[Any] = tame, others: tuple[tuple[str, ...], ...] = ((),)
) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "defaultAction": f"SCMP_ACT_{draw(st.sampled_from(DEFAULTS))}",
        "architectures": [inputs.NATIVE, *draw(st.sampled_from(others))],
        "flags": draw(st.sampled_from(([], ["SECCOMP_FILTER_FLAG_LOG"], ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]))),
        "syscalls": draw(st.lists(rules(condition), max_size=6)),
    }
    if draw(st.booleans()):
        raw["defaultErrnoRet"] = draw(st.sampled_from((1, 38)))
    return raw


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Generated, real, ours, and meets of two of those."""
    fixed = [*inputs.DENY_LISTS.values(), inputs.ours("locked"), inputs.ours("dev"), seccomp.TOP, seccomp.BOTTOM]
    one = Profile(draw(raws())) if draw(st.integers(0, 3)) else draw(st.sampled_from(fixed))
    return seccomp.meet(one, Profile(draw(raws()))) if draw(st.booleans()) else one
