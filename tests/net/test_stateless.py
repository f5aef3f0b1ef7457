"""The lock inside that does without conntrack, on the real kernel, with no host's lock in front: which networks get it,
what it keeps to, and mutants of its rules. What it does as the other lock does it is tested with that: `labs.either`.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from hooks import chains, grants, labels, lock, nft, plan, records, stateless
from hooks.attributes import text
from shim.cold.network import net_refresh
from tests.net import lab as labs
from tests.net import oracle
from tests.net.hostlab import checksum, datagram, send_icmp
from tests.net.lab import CONTAINER4, CONTAINER6, FAR4, FAR6, INTERNET4, METADATA, Lab
from tests.net.test_led_on import KINDS6, NOTHING, came, heard, raw4, raw6
from tests.net.test_lock import REFUSED, both
from tests.net.test_mutants import Rules, answers, load, nothing
from tests.net.test_oracle import parts

HOSTS = [["tcp", FAR4, 443, 443], ["udp", FAR4, 443, 443]]
PEERS: dict[str, Any] = {"outbound": HOSTS}
CT = text(1, "ct")  # the name of an expression

stateless_lab = pytest.mark.parametrize("lab", [True], ids=["stateless"], indirect=True)


# Which networks


WITH: dict[str, dict[str, Any]] = {
    "many neighbouring ports": {"outbound": [["tcp", FAR4, 443, 443 + grants.FEW + 1]]},
    "a few of many": {"outbound": [["tcp", f"203.0.113.{n}", 1, 2] for n in range(grants.FEW + 1)]},
    "a range of addresses": {"outbound": [["tcp", "203.0.113.0/24", 443, 443]]},
    "any": {"outbound": "any"},
    "IPv6": {"outbound": [["tcp", FAR6, 443, 443]]},
    "what is called": {"outbound": HOSTS, "inbound": [["tcp", 8080, 8080]]},
    "echo": {"outbound": HOSTS, "icmp": True},
    "metadata, which no set of hosts has": {"outbound": [["tcp", METADATA, 80, 80]]},
    "a name with ports to come": {"outbound": [], "names": [["tcp", "a.test", 1, 2]]},
}
WITHOUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "hosts": PEERS,
    "some neighbouring ports": {"outbound": [["tcp", FAR4, 443, 443 + grants.FEW]]},
    "neighbouring ports one by one": {"outbound": [["udp", FAR4, port, port] for port in (7, 8, 9)]},
    "a name": {**PEERS, "names": [["tcp", "a.test", 443, 443]]},
    "a resolver": {"outbound": HOSTS, "dns": True, "resolvers": [INTERNET4]},
}


@pytest.mark.parametrize("kind", WITH)
def test_what_needs_conntrack_has_it(kind: str) -> None:
    for mode in ("isolated", "auto"):
        section = {"mode": mode, **WITH[kind]}
        assert lock.behind(section) == lock.steps(section)


@pytest.mark.parametrize("kind", WITHOUT)
def test_no_rule_asks_what_conntrack_knows(kind: str) -> None:
    (made,) = lock.behind({"mode": "isolated", **WITHOUT[kind]})
    assert made.room == plan.CONTAINER
    assert CT not in made.do
    (other,) = lock.steps({"mode": "isolated", **WITHOUT[kind]})
    assert other.do.count(CT) > 10


def test_an_engines_network_that_nobody_expected_has_conntrack() -> None:
    empty, built = lock.behind({"mode": "auto", **PEERS})
    assert empty.room == plan.CONTAINER | plan.ONLY_EMPTY and CT not in empty.do
    (alone,) = lock.steps({"mode": "auto", **PEERS})
    assert built == alone.only(plan.ONLY_BUILT)
    assert plan.decode(plan.encode((empty, built)))[1].do == alone.do


@pytest.mark.parametrize("mode", ["auto", "isolated"])
def test_the_most_grants_are_a_plan(mode: str) -> None:
    many = [["tcp", f"198.18.{n >> 8}.{n & 255}", 443, 443] for n in range(lock.MOST)]
    steps = lock.behind({"mode": mode, "outbound": many})
    assert len(plan.encode(steps)) < plan.MOST_BYTES and "without conntrack" in steps[0].words


def test_an_engine_builds_or_does_not(lab: Lab, tmp_path: Any) -> None:
    """The native hook makes one of both locks of a plan."""
    steps = lock.behind({"mode": "auto", **PEERS})
    lab.serve(lab.i, *both(FAR4, 443))
    for change, tracked in (("down", False), ("up", True)):
        lab.batch(lab.c, f"link set eth0 {change}", "link set lo up")
        done = lab.hook(steps, tmp_path / "plan")
        assert (done.returncode, done.stderr) == (0, "")
        assert ("ct direction" in lab.nft("list", "ruleset")) == tracked
        lab.batch(lab.c, "link set eth0 up", f"route replace default via {INTERNET4}")
        assert (lab.tcp(FAR4, 443), lab.tcp(FAR4, 444)) == ("open", REFUSED["tcp"])
        lab.nft("delete", "table", "inet", "agentshim")


# What it keeps to


@pytest.mark.parametrize("dns", [False, True])
@stateless_lab
def test_ours_is_what_nft_makes_of_the_text(lab: Lab, dns: bool) -> None:
    lab.load({**PEERS, "dns": dns, "resolvers": [INTERNET4] if dns else []})
    ours = parts(lab.rules())
    lab.nft("delete", "table", "inet", "agentshim")
    hosts = [f"{protocol} . {FAR4} . 443" for protocol in ("tcp", "udp")]
    hosts += [f"{protocol} . {INTERNET4} . 53" for protocol in ("tcp", "udp")] if dns else []
    lab.nft("-f", "-", text=oracle.stateless(hosts, dns))
    errors = [("errors", rule) for rule in ours["rules errors"] if oracle.unreadable(rule)]
    assert errors == oracle.about()
    ours["rules errors"] = ours["rules errors"][len(errors) :]
    assert ours == parts(lab.rules())


@stateless_lab
def test_the_kernel_tracks_nothing(lab: Lab) -> None:
    def tracked() -> int:
        with open("/proc/sys/net/netfilter/nf_conntrack_count") as told:
            return int(told.read())

    lab.serve(lab.i, *both(FAR4, 443))
    for make, count in ((lock.behind, False), (lock.steps, True)):
        lab.replay(make({"mode": "isolated", **PEERS}))
        assert (lab.tcp(FAR4, 443), lab.udp(FAR4, 443), lab.tcp(FAR4, 444)) == ("open", "open", REFUSED["tcp"])
        assert bool(lab.inside(lab.c, tracked)) == count
        lab.nft("delete", "table", "inet", "agentshim")


@stateless_lab
def test_nobody_calls(lab: Lab) -> None:
    """Neither a stranger nor a peer, from the port that it may answer from."""
    lab.serve(lab.c, *both(CONTAINER4, 8080))
    lab.load(PEERS)
    assert lab.inside(lab.i, lambda: from_far("tcp", 443, 8080)) == "silence"
    assert lab.inside(lab.i, lambda: from_far("tcp", 444, 8080)) == "silence"
    assert lab.inside(lab.i, lambda: from_far("udp", 444, 8080)) == "silence"
    assert lab.rows("refused").keys() == {("tcp", FAR4, 8080), ("udp", FAR4, 8080)}
    assert lab.inside(lab.i, lambda: from_far("udp", 443, 8080)) != "silence", "a peer may send, called or not"


def from_far(protocol: str, port: int, to: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((FAR4, port))
        made.settimeout(0.4)

        def go() -> bool:
            made.connect((CONTAINER4, to))
            made.send(b"x")
            return bool(made.recv(1))

        return labs.attempt(go)


SYN, ACK, FIN, RST = 2, 16, 1, 4


@pytest.mark.parametrize(("flags", "comes"), [(SYN, False), (SYN | FIN, False), (SYN | 0xC0, False), (SYN | ACK, True)])
@stateless_lab
def test_a_call_is_a_syn_without_ack(lab: Lab, flags: int, comes: bool) -> None:
    lab.load(PEERS)
    lab.inside(lab.i, lambda: segment(443, flags))
    assert (lab.rows("refused").keys() == set()) == comes


def segment(port: int, flags: int) -> None:
    """One TCP segment from a peer, made by hand."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.bind((FAR4, 0))
        head = struct.pack(">HHIIBBHHH", port, 8080, 1, 1, 5 << 4, flags, 1000, 0, 0)
        raw.sendto(head[:16] + checked(head) + head[18:], (CONTAINER4, 0))


def checked(head: bytes) -> bytes:
    ends = socket.inet_aton(FAR4) + socket.inet_aton(CONTAINER4)
    return struct.pack(">H", checksum(ends + struct.pack(">HH", 6, len(head)) + head))


@stateless_lab
def test_of_a_stranger_only_calls_are_told(lab: Lab) -> None:
    """What would end a suggestion to let somebody in that never called."""
    lab.load(PEERS)
    for flags in (ACK, RST, FIN | ACK, SYN | ACK, 0):
        lab.inside(lab.i, lambda flags=flags: segment(444, flags))  # type: ignore[misc]
    assert lab.rows("refused") == {}
    lab.inside(lab.i, lambda: segment(444, SYN))
    assert lab.rows("refused").keys() == {("tcp", FAR4, 8080)}


@stateless_lab
def test_ipv6_is_shut(lab: Lab) -> None:
    lab.serve(lab.i, *both(FAR6, 443))
    lab.serve(lab.c, *both(CONTAINER6, 8080), *both("::1", 8080))
    lab.load(PEERS)
    assert (lab.tcp(FAR6, 443), lab.udp(FAR6, 443)) == (REFUSED["tcp"], REFUSED["udp"])
    assert (lab.tcp(CONTAINER6, 8080, lab.i), lab.udp(CONTAINER6, 8080, lab.i)) == ("silence", "silence")
    assert (lab.tcp("::1", 8080), lab.udp(CONTAINER6, 8080)) == ("open", "open")
    for kind in KINDS6.values():
        assert not came(lab, "out", partial(raw6, CONTAINER6, FAR6, *kind))


@pytest.mark.parametrize("dns", [False, True])
@stateless_lab
def test_the_engines_resolver_only_with_dns(lab: Lab, dns: bool) -> None:
    lab.serve(lab.c, *both("127.0.0.11", 53, 40000))
    lab.load({**PEERS, "dns": dns, "resolvers": [INTERNET4] if dns else []})
    tcp, udp = ("open", "open") if dns else (REFUSED["tcp"], REFUSED["udp"])
    assert [lab.tcp("127.0.0.11", port) for port in (53, 40000)] == [tcp, tcp]
    assert [lab.udp("127.0.0.11", port) for port in (53, 40000)] == [udp, udp]


@stateless_lab
def test_no_echo_either_way(lab: Lab) -> None:
    lab.load(PEERS)
    assert (lab.ping(FAR4), lab.ping(CONTAINER4, lab.i), lab.ping("127.0.0.1")) == ("EPERM", "silence", "open")


@stateless_lab
def test_full_flows_fail_closed(lab: Lab) -> None:
    ports = range(1000, 1006)
    lab.serve(lab.i, *[("tcp", FAR4, port) for port in ports])
    lab.load({"outbound": [["tcp", FAR4, port, port] for port in ports]}, rows=4)
    assert [lab.tcp(FAR4, port) for port in ports] == ["open"] * 4 + [REFUSED["tcp"]] * 2
    assert len(lab.rows("flows")) == 4 and lab.tcp(FAR4, 1000) == "open"


@pytest.mark.parametrize(("protocol", "port"), list(itertools.product(("tcp", "udp"), (443, 9))))
@stateless_lab
def test_the_hard_deny_is_before_a_lease(lab: Lab, protocol: str, port: int) -> None:
    """Which `records` would not write: whoever writes elements himself opens nothing of it."""
    lab.serve(lab.i, (protocol, METADATA, port))
    lab.load(PEERS)
    lab.nft("add", "element", "inet", "agentshim", "leased", f"{{ {protocol} . {METADATA} . {port} timeout 1h }}")
    said = lab.tcp(METADATA, port) if protocol == "tcp" else lab.udp(METADATA, port)
    assert said == REFUSED[protocol]


# A refresh

A, B = FAR4, "203.0.113.6"
NAMED: dict[str, tuple[list[Any], list[Any], dict[str, list[str]], dict[str, list[str]], set[tuple[str, int]]]] = {
    "two names, neighbouring ports, one address later": (
        [["tcp", "a.test", 443, 443], ["tcp", "b.test", 444, 444]],
        [],
        {"a.test": [A], "b.test": [B]},
        {"a.test": [A], "b.test": [A]},
        {(A, 443), (A, 444)},
    ),
    "a name, and a grant of the neighbouring port": (
        [["tcp", "a.test", 443, 443]],
        [["tcp", B, 444, 444]],
        {"a.test": [A]},
        {"a.test": [B]},
        {(B, 443), (B, 444)},
    ),
    "to two": ([["tcp", "a.test", 443, 443]], [], {"a.test": [A]}, {"a.test": [A, B]}, {(A, 443), (B, 443)}),
    "to none": ([["tcp", "a.test", 443, 443]], [], {"a.test": [A]}, {"a.test": []}, set()),
}


@pytest.mark.parametrize("case", NAMED)
@stateless_lab
def test_what_names_lead_to_by_now(lab: Lab, case: str) -> None:
    listed, outbound, before, after, opened = NAMED[case]
    found = [[p, one, *ports] for p, name, *ports in listed for one in before[name]]
    section = {"mode": "confine", "names": listed, "pins": before, "outbound": outbound + found}
    lab.load(section)
    lab.serve(lab.i, *[("tcp", address, port) for address in (A, B) for port in (443, 444)])
    with records.opened(lab.path) as kernel:
        there = net_refresh._granted(kernel, lab.path)
        door = net_refresh.Door(kernel, "the lock inside")
        wanted = net_refresh._wanted(net_refresh._section(section, after), "outbound" in there)
        door.differ(set().union(*there.values()), set(wanted))
        door.turn(door.forward)
    said = {(address, port): lab.tcp(address, port) for address in (A, B) for port in (443, 444)}
    assert {peer for peer, answer in said.items() if answer == "open"} == opened
    assert set(said.values()) <= {"open", REFUSED["tcp"]}


# ICMP errors


def error(kind: int, about: tuple[int, str, int], first: int = 0x45) -> Callable[[], None]:
    """An ICMP error from outside about a packet to (protocol, address, port) that is said to be of our port 4000."""
    protocol, far, port = about

    def send() -> None:
        ends = socket.inet_aton(CONTAINER4) + socket.inet_aton(far)
        inner = struct.pack(">BBHHHBBH", first, 0, 29, 7, 0, 64, protocol, 0) + ends
        inner += bytes(4 * ((first & 15) - 5)) + struct.pack(">HHHH", 4000, port, 9, 0)
        send_icmp(struct.pack(">BBHI", kind, 3, 0, 0), inner, CONTAINER4)

    return send


def reached(lab: Lab, sent: Callable[[], None]) -> bool:
    """Whether the container's own kernel has seen an ICMP message."""

    def go() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as made:
            made.settimeout(0.3)
            lab.inside(lab.i, sent)
            try:
                return bool(made.recv(100))
            except TimeoutError:
                return False

    found: bool = lab.inside(lab.c, go)
    return found


@pytest.mark.parametrize("kind", range(20))
@stateless_lab
def test_of_icmp_only_errors_about_a_packet_to_a_peer(lab: Lab, kind: int) -> None:
    lab.load(PEERS)
    assert reached(lab, error(kind, (17, FAR4, 443))) == (kind in (3, 11))
    if kind in (3, 11):
        assert not reached(lab, error(kind, (17, FAR4, 444)))
        assert not reached(lab, error(kind, (1, FAR4, 443)))
        assert not reached(lab, error(kind, (6, "203.0.113.6", 443)))
        assert not reached(lab, error(kind, (17, FAR4, 443), first=0x46)), "its ports lie elsewhere"


@pytest.mark.parametrize("granted", ["host", "lease"])
@stateless_lab
def test_an_error_comes_as_long_as_its_flow_is_granted(lab: Lab, granted: str) -> None:
    lab.load({"outbound": [["udp", FAR4, 9, 9]] if granted == "host" else []})
    if granted == "lease":
        assert not reached(lab, error(3, (17, FAR4, 9)))
        records.lease_add(lab.path, "udp", FAR4, 9, 60_000)
    assert lab.udp(FAR4, 9) == "ECONNREFUSED"
    assert reached(lab, error(3, (17, FAR4, 9)))
    if granted == "lease":
        assert records.lease_del(lab.path, "udp", FAR4, 9)
        assert not reached(lab, error(3, (17, FAR4, 9)))


@stateless_lab
def test_the_mtu_of_the_path_is_learned(lab: Lab) -> None:
    """An error of kind 3, code 4: a datagram that is too long for the way there is refused by our own kernel then."""
    lab.serve(lab.i, ("udp", FAR4, 443))
    lab.load(PEERS)

    def send() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            made.connect((FAR4, 443))
            made.settimeout(0.5)
            first = labs.attempt(lambda: made.send(bytes(1400)) == 1400 and bool(made.recv(2000)))
            lab.inside(lab.i, lambda: narrower(made.getsockname()[1]))
            time.sleep(0.05)
            made.setsockopt(socket.IPPROTO_IP, 11, 0)
            said = [labs.attempt(lambda: made.send(bytes(1400)) == 1400) for _ in range(2)]
            return f"{first} {said[-1]}"

    assert lab.inside(lab.c, send) == "open EMSGSIZE"


def narrower(port: int) -> None:
    ends = socket.inet_aton(CONTAINER4) + socket.inet_aton(FAR4)
    inner = (
        struct.pack(">BBHHHBBH", 0x45, 0, 1428, 7, 0x4000, 64, 17, 0) + ends + struct.pack(">HHHH", port, 443, 1408, 0)
    )
    send_icmp(struct.pack(">BBHHH", 3, 4, 0, 0, 1000), inner, CONTAINER4)


# Mutants: each opens what the lock shuts


@stateless_lab
def test_a_peer_that_may_call(lab: Lab) -> None:
    lab.serve(lab.c, ("tcp", CONTAINER4, 8080))

    def any_segment(rules: Rules) -> None:
        rules["peer"] = [chains.ACCEPT]

    said = answers(lab, PEERS, any_segment, lambda: lab.inside(lab.i, lambda: from_far("tcp", 443, 8080)))
    assert said == ["silence", "open"]


@pytest.mark.parametrize("less", ["kind", "about"])
@stateless_lab
def test_errors_less_carefully_read(lab: Lab, less: str) -> None:
    def change(rules: Rules) -> None:
        words = stateless.ERROR if less == "kind" else stateless.ABOUT + nft.lookup("hosts")
        rules["errors"] = [rule.replace(words, b"") for rule in rules["errors"]]

    sent = error(5, (17, FAR4, 443)) if less == "kind" else error(3, (17, FAR4, 444))
    assert answers(lab, PEERS, change, lambda: reached(lab, sent)) == [False, True]


@stateless_lab
def test_a_lease_before_the_hard_deny(lab: Lab) -> None:
    lab.serve(lab.i, ("tcp", METADATA, 80))

    def before(rules: Rules) -> None:
        leased = next(rule for rule in rules["output"] if nft.lookup("leased") in rule)
        rules["output"].remove(leased)
        rules["output"].insert(1, leased)

    def probe() -> str:
        lab.nft("add", "element", "inet", "agentshim", "leased", f"{{ tcp . {METADATA} . 80 timeout 1h }}")
        return lab.tcp(METADATA, 80)

    assert answers(lab, PEERS, before, probe) == [REFUSED["tcp"], "open"]


@stateless_lab
def test_what_is_led_on(lab: Lab) -> None:
    """Options of IPv4, to and from a peer."""

    def shut_off(rules: Rules) -> None:
        for chain in rules:
            rules[chain] = [one for one in rules[chain] if not one.startswith(chains.LED_ON4)]
        for chain in ("output", "input"):
            rules[chain] = [rule.replace(chains.PLAIN4, b"") for rule in rules[chain]]

    section = {"outbound": [["udp", FAR4, 53, 53]]}
    for ends in ((INTERNET4, CONTAINER4), (CONTAINER4, FAR4)):  # who asks for a hardware address would be too late
        lab.inside(lab.i if ends[0] == INTERNET4 else lab.c, partial(raw4, *ends, b""))
    sent = partial(raw4, CONTAINER4, FAR4, NOTHING)
    assert answers(lab, section, shut_off, lambda: came(lab, "out", sent)) == [False, True]

    def back() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
            made.sendto(datagram(FAR4, CONTAINER4, 53, b"mark", NOTHING, 53), (CONTAINER4, 0))

    assert answers(lab, section, shut_off, lambda: heard(lab, back)) == [False, True]


@stateless_lab
def test_the_set_of_leases_is_where_leases_are_written(lab: Lab) -> None:
    load(lab, PEERS, nothing)
    assert f"table inet {labels.TABLE}" in lab.nft("list", "ruleset")
    records.lease_add(lab.path, "tcp", FAR4, 444, 60_000)
    lab.serve(lab.i, ("tcp", FAR4, 444))
    assert lab.tcp(FAR4, 444) == "open"
