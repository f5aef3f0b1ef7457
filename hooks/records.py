"""What a lock counted, and its leases: read and changed from outside, by whoever is root on the host. Cold.

Belongs here: the sets of `lock` as rows, those that the host's lock counts in, and elements with a timeout. Next door:
`lock` made the sets; `netlink` asks.

A row is (protocol, address, port, packets, bytes). Of @flows and @denied address and port are the far ones, of @refused
the far address and our port. Packets are counted at the output and input hook: bytes are IP packets, headers included,
Ethernet excluded; a large TCP segment that the card or the far end of a veth cuts up counts as the one packet that it
is here. @flows counts what goes out, not the answers. A row records a verdict, not a completed connection. A packet is
in one row at most: what the lock inside rejects does not reach the host's.
"""

from __future__ import annotations

import posix
import time

from hooks import nft, nft_ask, nft_read
from hooks.chains import is_hard
from hooks.grants import KEY6, KEYS, LAST_PORT, NAMES, PROTOCOLS, address_of
from hooks.host import FLOW_KEY, REJECTED, ROWS_STAY, flow_key
from hooks.labels import TABLE, dotted
from hooks.lock import LEASES
from hooks.netlink import NETFILTER, Socket
from shim.errors import HostError, Invalid, Refused, ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    Row = tuple[str, str, int, int, int]  # protocol, address, port, packets, bytes
    Lease = tuple[str, str, int, int, int]  # protocol, address, port, timeout ms, expires ms
    Records = dict[str, list[Row]]
    AtHost = dict[str, dict[bytes, list[tuple[float, Row]]]]

COUNTED = ("flows", "denied", "refused")
LONGEST = 366 * 24 * 3600 * 1000  # ms
TICK = 0.02  # seconds: clocks of the kernel are as coarse as 10 ms
_CLONE_NEWNET = 0x40000000


def read(namespace: str) -> Records:
    """The rows of flows, denied and refused, sorted, of the network namespace at this path (/proc/PID/ns/net, or where
    one is pinned). HostError where there is no lock in it.
    """
    with opened(namespace) as kernel:
        found = {name: _both(kernel, name, namespace) for name in COUNTED}
    return {
        name: sorted((*_told(key), packets, octets) for key, _, _, _, packets, octets in every)
        for name, every in found.items()
    }


def at_host() -> AtHost:
    """The rows of denied and refused of the host's lock that have begun within the hour, by the agent's address, each
    with when it began, in seconds since boot. Empty where the rules have gone: `doctor` tells of that. HostError where
    the kernel does not answer.
    """
    found: AtHost = {name: {} for name in REJECTED}
    with Socket(NETFILTER) as kernel:
        for name, rows in found.items():
            every, now = elements(kernel, name) or (), time.clock_gettime(time.CLOCK_BOOTTIME)
            for key, _, timeout, expires, packets, octets in every:
                agent, protocol, far, port = FLOW_KEY.unpack(key)
                age = (timeout or ROWS_STAY) - expires  # the kernel does not repeat what holds for the whole set
                row = (NAMES.get(protocol, str(protocol)), dotted(far), port, packets, octets)
                rows.setdefault(agent, []).append((now - age / 1000, row))
    return found


def of_agent(found: AtHost, agent: bytes, since: float) -> Records:
    """The rows of one agent, sorted. `since`: when it has got its address, in seconds since boot; a row that began
    before is left out, for it counts what its predecessor did, too.
    """
    return {
        name: sorted(row for began, row in every.get(agent, ()) if began >= since - TICK)
        for name, every in found.items()
    }


def leases(namespace: str) -> list[Lease]:
    """The leases that have not ended, sorted."""
    with opened(namespace) as kernel:
        every = _both(kernel, "leased", namespace)
    return sorted((*_told(key), timeout, expires) for key, _, timeout, expires, _, _ in every)


def lease_add(namespace: str, protocol: str, address: str, port: int, milliseconds: int, agent: bytes = b"") -> None:
    """Grant one address and port for so long, or for so long from now on where it is leased already. `agent`: its own
    address where the host has a lock of its own for it, which is opened first, and shut again where the other is not.

    Refused on an address that is not grantable, and on IPv6 where the lock has it shut; HostError where there is no
    lock, or no place for one more lease.
    """
    key = _key(protocol, address, port)
    if not 0 < milliseconds <= LONGEST:
        raise Invalid("network", "lease", f"{milliseconds} ms", f"1 to {LONGEST} ms", "ask for another time")
    if is_hard(address_of(address)):
        raise Refused("network", "lease", address, "no link-local, multicast or metadata address", "ask for another")
    if not agent:
        with opened(namespace) as kernel:
            _add(kernel, namespace, key, milliseconds)
        return
    outer = flow_key(agent, protocol, address_of(address), port)
    with Socket(NETFILTER) as host, opened(namespace) as kernel:
        _add(host, "the host's", outer, milliseconds)
        try:
            _add(kernel, namespace, key, milliseconds)
        except ShimError:
            _end(host, outer)
            raise


def lease_del(namespace: str, protocol: str, address: str, port: int, agent: bytes = b"") -> bool:
    """End a lease at once, in both locks where `agent` has two; whether there was one."""
    key = _key(protocol, address, port)
    with opened(namespace) as kernel:
        there = _end(kernel, key)
    if agent:
        with Socket(NETFILTER) as host:
            there = _end(host, flow_key(agent, protocol, address_of(address), port)) or there
    return there


def _add(kernel: Socket, namespace: str, key: bytes, milliseconds: int) -> None:
    name = _leased(key)
    fresh = nft.lease(TABLE, name, key, milliseconds)
    for batch in ((fresh,), (nft.release(TABLE, name, key), fresh), (fresh,)):
        try:
            kernel.ask(nft.batch(batch), 1)
            return
        except FileExistsError:
            continue  # leased already: its end and its new begin in one transaction
        except FileNotFoundError as error:
            if len(batch) == 1:
                raise _absent(namespace, name) from error
            continue  # it ended just now
        except OSError as error:
            raise _not_leased(error) from error
    raise HostError("network", "lease", "a lease", "one that stays", "it changes all the time: try again")


def _end(kernel: Socket, key: bytes) -> bool:
    try:
        kernel.ask(nft.batch([nft.release(TABLE, _leased(key), key)]), 1)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _not_leased(error) from error
    return True


def opened(namespace: str) -> Socket:
    """A netfilter socket in another network namespace; HostError where that cannot be entered.

    A forked child enters, opens the socket and passes it back: a socket stays in the namespace it was made in. The
    caller never leaves its own, so there is no way back that could fail, and no thread or later file of it that is in
    the wrong network.
    """
    import socket  # 4 ms, as is ctypes: nobody waits for a container here

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        child = posix.fork()
        if child == 0:
            posix._exit(_passed(namespace, theirs))
        theirs.close()
        data, descriptors, _, _ = socket.recv_fds(ours, 16, 1)
        posix.waitpid(child, 0)
    if not descriptors:
        error = OSError(int(data or b"5"), "")
        raise HostError("network", "namespace", namespace, "one that can be entered", reason(error)) from error
    return Socket(NETFILTER, descriptors[0])


def _passed(namespace: str, theirs: object) -> int:
    """In the child: the exit code. What went wrong is sent as the number of the error."""
    import socket

    assert isinstance(theirs, socket.socket)
    try:
        descriptor = posix.open(namespace, posix.O_RDONLY | posix.O_CLOEXEC)
        _setns(descriptor)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER) as made:
            socket.send_fds(theirs, [b"0"], [made.fileno()])
        return 0
    except OSError as error:
        theirs.send(str(error.errno or 5).encode())
        return 1
    except BaseException:
        return 1  # never up into the caller's code, in a copy of the caller


def _setns(descriptor: int) -> None:
    """os.setns is there from Python 3.12 on only."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def elements(kernel: Socket, name: str) -> list[nft_read.Element] | None:
    """What a set of either lock holds; None where there is no such set. HostError where it cannot be read."""
    try:
        return nft_read.elements(kernel.dump(nft_ask.list_elements(TABLE, name)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError("network", name, "its rows", "a set that can be read", reason(error)) from error


def _both(kernel: Socket, name: str, namespace: str) -> list[nft_read.Element]:
    """The elements of both address families; there is no set for IPv6 where that is shut."""
    found = elements(kernel, name)
    if found is None:
        raise _absent(namespace, name)
    return found + (elements(kernel, name + "6") or [])


def _told(key: bytes) -> tuple[str, str, int]:
    from _socket import inet_ntop

    layout = KEYS[len(key) - 8]
    protocol, address, port = layout.unpack(key)
    return NAMES.get(protocol, str(protocol)), inet_ntop(2 if len(address) == 4 else 10, address), port


def _key(protocol: str, address: str, port: int) -> bytes:
    packed = address_of(address)
    if protocol not in PROTOCOLS or not 0 < port <= LAST_PORT:
        raise Invalid("network", "lease", f"{protocol}:{address}:{port}", "tcp or udp, port 1 to 65535", "correct it")
    return KEYS[len(packed)].pack(PROTOCOLS[protocol], packed, port)


def _leased(key: bytes) -> str:
    return "leased6" if len(key) == KEY6.size else "leased"


def _absent(namespace: str, name: str) -> ShimError:
    if name.endswith("6"):
        return Refused("network", "lease", "an IPv6 address", "IPv4", "this lock has IPv6 shut: grant some in policy")
    return HostError("network", "namespace", namespace, "one with our table in it", "this network is not confined")


def _not_leased(error: OSError) -> HostError:
    full = f"{LEASES} leases are there" if error.errno == 23 else reason(error)  # ENFILE
    return HostError("network", "lease", "one more", "a lease", full)
