"""The plan of a container's network, made anew: all that makes netlink messages is imported here, and nowhere else.

Next door: `verbs.lock` decides what a network lets through; `verbs.link` has the plan of the last container, which is
the next one's but for its address; `hooks.lock`, `hooks.host` and `hooks.link` have the steps.
"""

from __future__ import annotations

from hooks import host, labels, link, lock, plan
from hooks.grants import address_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    At = tuple[int, str, int, bool]  # the bridge's number, or a card's; gateway; prefix length; whether IPv6 is there


def confined(section: dict[str, Any]) -> bytes:
    """The plan for the network of an engine: the lock inside alone."""
    return plan.encode(lock.steps(section))


def linked(section: dict[str, Any], at: At, digest: str, address: bytes) -> bytes:
    """The plan for a network of ours under the policy of `digest`, for a container at an address."""
    index, gateway, prefix, six = at
    port = link.Port(index, address_of(gateway), prefix, address)
    if "macvlan" in section:  # the lock inside is the only one
        steps = lock.steps(section) + link.on_lan(port, six)
    else:
        steps = lock.behind(section)
        enter = host.enter(port, labels.tag(digest), section["pinned"], section["at_host"])
        steps += (enter, *host.doors(port, section["publish"]), *link.steps(port, six))
    # With `auto` an engine's network is filtered where it is, all else is not what the policy wants.
    return plan.encode(steps if section["mode"] == "auto" else plan.required(steps))
