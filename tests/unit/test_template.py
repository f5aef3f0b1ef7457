"""A template's plan for an address is the plan that would be made for it, byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooks import labels, plan, template
from shim.verbs import steps

DIGEST = "sha256:" + "5e" * 32
KEY = b"k" * 40
PROTOCOLS = st.sampled_from(["tcp", "udp"])
PORTS = st.tuples(st.integers(1, 65535), st.integers(0, 3)).map(lambda one: [one[0], min(one[0] + one[1], 65535)])
FAR = st.integers(0x0B000000, 0xDFFFFFFF).map(lambda one: labels.dotted(one.to_bytes(4, "big")))
ADDRESSES = st.integers(0x0ACF0000, 0x0ACFFFFF).map(lambda one: one.to_bytes(4, "big"))  # of the default pool
AT = (7, "10.207.0.1", 22, True)


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    """[network] as a start has it; sometimes with a grant of the template's own strangers."""
    far = st.one_of(FAR, st.sampled_from([labels.dotted(one) for one in template.STRANGERS]))
    grants = st.lists(st.tuples(PROTOCOLS, far, PORTS).map(lambda one: [one[0], one[1], *one[2]]), max_size=5)
    published = st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535), PROTOCOLS), max_size=2)
    return {
        "mode": draw(st.sampled_from(["auto", "isolated"])),
        "outbound": draw(grants),
        "inbound": [["tcp", 80, 80]],
        "dns": False,
        "icmp": draw(st.booleans()),
        "pinned": draw(grants),
        "publish": [["127.0.0.1", outside, inside, one] for outside, inside, one in draw(published)],
        "at_host": draw(grants),
    }


@settings(max_examples=150, deadline=None)
@given(sections(), st.lists(ADDRESSES, min_size=1, max_size=3))
def test_filled_as_it_would_be_made(section: dict[str, Any], addresses: list[bytes]) -> None:
    made = template.of(KEY, lambda address: steps.linked(section, AT, DIGEST, address))
    if not any(labels.dotted(one) in repr(section) for one in template.STRANGERS):
        assert made  # else each create would pay for a plan of its own
    for address in addresses:
        if made:
            assert template.filled(made, KEY, address) == steps.linked(section, AT, DIGEST, address)


def test_on_a_lan() -> None:
    section = {"mode": "isolated", "outbound": [], "inbound": [], "dns": False, "icmp": False, "macvlan": {}}
    made = template.of(KEY, lambda address: steps.linked(section, AT, DIGEST, address))
    here = bytes((192, 168, 77, 9))
    assert template.filled(made, KEY, here) == steps.linked(section, AT, DIGEST, here)
    assert plan.decode(template.filled(made, KEY, here))


def test_only_its_own_key() -> None:
    made = template.of(KEY, lambda address: b"plan of " + address)
    assert template.filled(made, KEY, b"\x0a\x00\x00\x02") == b"plan of \x0a\x00\x00\x02"
    for wrong in (b"", b"\n", b"other\n0,,\nplan", made[1:], KEY[:-1] + made[len(KEY) :]):
        assert template.filled(wrong, KEY, b"\x0a\x00\x00\x02") == b""


@pytest.mark.parametrize("more", [lambda one: labels.dotted(one), lambda one: "x" * one[0], lambda one: one[:2].hex()])
def test_none_where_more_follows_from_the_address(more: Callable[[bytes], str]) -> None:
    assert not template.of(KEY, lambda address: b"plan " + more(address).encode())
    assert template.of(KEY, lambda address: b"plan " + labels.host_end(address).encode())


def test_a_key_changes_with_what_the_plan_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"outbound": [["tcp", "203.0.113.5", 443, 443]]}
    key = template.key((section, AT, DIGEST))
    assert key == template.key((dict(section), AT, DIGEST))
    others: tuple[object, ...] = (
        (section, (8, *AT[1:]), DIGEST),
        (section, AT, DIGEST[:-1] + "f"),
        ({"outbound": []}, AT, DIGEST),
    )
    assert len({key, *map(template.key, others)}) == 4

    home = Path(template.__file__).parents[1]
    for name in ("hooks", "shim/verbs", "shim"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for source in (home / name).glob("*.py"):
            shutil.copy2(source, tmp_path / name)
    monkeypatch.setattr(template, "_HERE", str(tmp_path / "hooks"))
    before = template.key(section)
    for name in template.MAKERS:
        source = tmp_path / "hooks" / f"{name}.py"
        there = source.stat()
        os.utime(source, ns=(there.st_atime_ns, there.st_mtime_ns + 1))
        after = template.key(section)
        assert after != before, name
        before = after


def test_every_maker_is_named() -> None:
    """All that `verbs.steps` imports, and what fills."""
    home = Path(template.__file__).parents[1]
    code = "import sys; sys.path.insert(0, sys.argv[1]); import shim.verbs.steps as one; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, home], capture_output=True, text=True, check=True)
    loaded = {Path(name.replace(".", "/")) for name in done.stdout.split() if name.startswith(("hooks.", "shim."))}
    sources = {os.path.normpath(f"hooks/{name}.py") for name in template.MAKERS}
    assert {f"{one}.py" for one in loaded if (home / f"{one}.py").is_file()} | {"hooks/template.py"} == sources
