"""A plan with holes where a container's address goes: made once, filled at each start. Hot: nothing here makes steps.

A container's plan follows from its policy, its bridge and its address, so two of one policy differ in the address only:
as 4 bytes, in hex, and in the number of the host's end. `of` finds these places by rendering a plan for an address that
nobody has, and renders it for a second one to see that nothing else follows from it.

    file    key, a newline, the places of each form in decimal, a newline; the plan

`key` is a digest of all that the plan was made from, and of the sources that made it. Whoever may write the file may
write plans: it lies where they do, in root's own directory.
"""

from __future__ import annotations

import sys
from _blake2 import blake2b

from hooks import labels
from shim import hostpaths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Whoever makes steps: another encoding makes another plan.
MAKERS = (
    *("attributes", "chains", "grants", "host", "labels", "link", "lock", "netlink", "nft", "nft_ask", "plan"),
    *("stateless", "template", "../shim/errors", "../shim/lattice", "../shim/verbs/steps"),
)
STRANGERS = b"\xf3\x9a\xe5\xb7", b"\xc6\x5b\xd9\x8e"  # no address of anybody's: 240.0.0.0/4 is not in use, nor are ours
_HERE = __file__.rpartition("/")[0]


def key(material: object) -> bytes:
    """A digest of what a plan is made from, plain values only, and of the sources that make it."""
    told = repr((material, hostpaths.stamps([f"{_HERE}/{name}.py" for name in MAKERS])))
    return blake2b(told.encode(), digest_size=20).hexdigest().encode()


def of(key: bytes, render: Callable[[bytes], bytes]) -> bytes:
    """The file of a plan that `render` makes for an address; b'' where more follows from the address than its forms."""
    one, other = STRANGERS
    data = render(one)
    places = [" ".join(map(str, _found(data, form))) for form in _forms(one)]
    made = b"\n".join((key, ",".join(places).encode(), data))
    return made if filled(made, key, other) == render(other) else b""


def filled(template: bytes, key: bytes, address: bytes) -> bytes:
    """The plan for an address; b'' where the file is of another key, or none."""
    known, _, rest = template.partition(b"\n")
    if known != key:
        return b""
    places, _, data = rest.partition(b"\n")
    out = bytearray(data)
    for form, at in zip(_forms(address), places.split(b","), strict=True):
        for place in map(int, at.split()):
            out[place : place + len(form)] = form
    return bytes(out)


def _forms(address: bytes) -> tuple[bytes, ...]:
    return address, address.hex().encode(), labels.number(address).to_bytes(4, sys.byteorder)


def _found(data: bytes, form: bytes) -> list[int]:
    """All places of `form`; they cannot overlap, for no form begins as it ends."""
    found: list[int] = []
    at = data.find(form)
    while at >= 0:
        found.append(at)
        at = data.find(form, at + len(form))
    return found
