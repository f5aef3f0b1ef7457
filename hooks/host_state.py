"""What is on disk of our bridges: written by `agentshim net up`, read and added to by a container's start. Hot.

Belongs here: the files below a directory, /run/agentshim/net by default, which a boot empties. Next door: `host` has
the kernel's side; shim/cold/network/net_up.py makes, repairs and removes.

    .lock                       held while rules and bridges are changed
    .rules                      a digest of the rules' text, the tags of the policies in them; behind the first line
                                their fingerprint
    PROFILE/bridge.json         name, number, gateway and subnet of the bridge; the tag of the policy of today; what was
                                seen of Docker's chain
    PROFILE/TAG.nft             chains and sets of a policy, for nft
    PROFILE/TAG.learned         the names that a policy lets containers ask for, where it does
    PROFILE/dnsmasq.conf        what answers them; PROFILE/resolver: its process, its start, a digest of its file
    PROFILE/plan                the plan of the last container but for its address, see `template`
    PROFILE/addresses/A.B.C.D   an address that is taken: the record of whose it is, and the process that took it;
                                behind a "-" where its owner has ended, and others live on in its network
    PROFILE/addresses/A.B.C.D.leased  the kernel may hold a lease of it: not free before `net gc` has looked
    PROFILE/members/A.B.C.D.PID.STARTED.OWNER  a link to an address's file: a process that joined, and its record
    PROFILE/members/A.B.C.D.net  the plan of the owner of that address, for whoever is the last in its network
    PROFILE/addresses/.lock     held while one is taken or collected; says which was the last

An address is taken by a link to a whole file, and comes round only after all others: what is left of its last owner
(the kernel takes apart a network namespace by itself, some 50 ms later) is gone by then.
"""

from __future__ import annotations

import fcntl
import posix
import sys
from _blake2 import blake2b

from hooks import fingerprint, labels, nft_ask
from shim import hostpaths, wire
from shim.errors import HostError, ShimError, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from hooks.netlink import Socket

    Bridge = dict[str, Any]  # profile, bridge, index, gateway, prefix, tag, published, docker

DIRECTORY = "/run/agentshim/net"
INTERFACES = "/proc/sys/net/ipv4/conf"  # of the reader's own network namespace
LOOK = 2  # addresses that one start looks at: bounds what it pays for others
LOCK, RULES, BRIDGE, ADDRESSES, LEASED = ".lock", ".rules", "bridge.json", "addresses", ".leased"
RESOLVER, PLAN, MEMBERS = "resolver", "plan", "members"
ENDED = "-"  # native/nethook.c writes it
MOST_BYTES = 1 << 21  # of a template: a plan, and its places
EVERY_BYTE = 1 << 30  # of the rules: some 12 KB a policy with names
OF_PROC = 1 << 16  # bytes: files of /proc say of themselves that they are empty
DOCKER_USER = nft_ask.chain_named(nft_ask.IP, "filter", "DOCKER-USER")  # iptables-nft's
LEGACY = "/proc/net/ip_tables_names"  # the tables of iptables-legacy in the reader's own network namespace
IFREQ, GET_FLAGS, UP = 40, 0x8913, 1  # netdevice(7)


def bridge(directory: str, profile: str) -> Bridge | None:
    """What the bridge of a profile is; None where there is none yet, or what is told of it is torn."""
    try:
        told = wire.loads(read(f"{directory}/{profile}/{BRIDGE}"), "network", BRIDGE)
    except (OSError, ShimError):
        return None
    return told if isinstance(told, dict) and told.get("index") else None


def ready(directory: str, profile: str, digest: str, kernel: Socket) -> Bridge | None:
    """The bridge of a profile where containers may be put on it: its policy is loaded, nobody has changed a rule, and
    it carries packets. None: call shim.cold.network.net_up.up. `kernel`: netfilter, in the host's network namespace.
    """
    found = bridge(directory, profile)
    kept, _, tags = rules(directory)
    tag = labels.tag(digest)
    if found is None or found["tag"] != tag or tag not in tags:
        return None
    if found.get("learned") and not resolver(directory, profile)[0]:
        return None
    if not carries(kernel, found["bridge"]) or docker(kernel) != found.get("docker"):
        return None
    return found if fingerprint.intact(kernel, kept) else None


def carries(kernel: Socket, name: str) -> bool:
    """Whether a bridge is there, is up, and forwards: who turns off net.ipv4.ip_forward turns this off with it."""
    try:
        told = fcntl.ioctl(kernel, GET_FLAGS, name.encode().ljust(IFREQ, b"\0"))
        return (
            bool(int.from_bytes(told[16:18], sys.byteorder) & UP) and read(f"{INTERFACES}/{name}/forwarding") == b"1\n"
        )
    except OSError:
        return False


def docker(kernel: Socket) -> str:
    """What is seen of the chain in which Docker's rules leave our bridges to us (shim/cold/network/net_others):
    another text where Docker has begun to drop, or somebody has flushed the chain, or its number of rules is another
    (the kernel tells it, with the chain's handle). Of iptables-legacy only which tables it has.
    """
    try:
        chain = blake2b(kernel.get(DOCKER_USER)[nft_ask.HEAD :], digest_size=10).hexdigest()
    except FileNotFoundError:
        chain = ""
    try:
        return chain + read(LEGACY).decode()
    except OSError:
        return chain


def resolver(directory: str, profile: str) -> tuple[int, str]:
    """(process, digest of its configuration) of the resolver of a profile; 0 where it has ended, or none was there."""
    try:
        pid, begun, digest = read(f"{directory}/{profile}/{RESOLVER}").decode("ascii").split()
        return (int(pid) if started(pid) == int(begun) != 0 and not is_over(pid) else 0), digest
    except (OSError, ValueError):
        return 0, ""


def rules(directory: str) -> tuple[bytes, str, list[str]]:
    """(fingerprint, digest of the text, tags) as the rules were loaded; nothing of each where that is not known."""
    try:
        head, _, kept = read(f"{directory}/{RULES}", EVERY_BYTE).partition(b"\n")
        text, *tags = head.decode("ascii").split()
        return kept, text, tags
    except (OSError, ValueError):
        return b"", "", []


def take(directory: str, profile: str, owner: str, told: Bridge | None = None) -> bytes:
    """An address on the bridge of a profile, of `owner`'s from now on: the name of its record (state.RECORD), without
    the suffix. HostError where none is free. `told`: what `bridge` says, where the caller has asked.
    """
    told = told or bridge(directory, profile)
    place = f"{directory}/{profile}/{ADDRESSES}"
    if told is None:
        raise HostError("network", profile, "an address", "a bridge", f"agentshim net up {profile}")
    lock = locked(f"{place}/{LOCK}")
    mine = f"{place}/.{posix.getpid()}"
    try:
        if hostpaths.exists(mine):  # a process of our number was killed here: it may be an address of its own by now
            posix.unlink(mine)
        _write(mine, f"{owner} {posix.getpid()} {started('self')}\n".encode())
        address, offset = _taken(place, mine, told, int(posix.pread(lock, 16, 0) or b"0"))
        posix.pwrite(lock, b"%-8d" % offset, 0)
        return address
    except OSError as error:
        raise HostError("network", place, reason(error), "a writable /run", "make /run writable for root") from None
    finally:
        posix.close(lock)
        if hostpaths.exists(mine):
            posix.unlink(mine)


def _taken(place: str, mine: str, told: Bridge, last: int) -> tuple[bytes, int]:
    """The next free address behind the last one that was taken; without the subnet's own and the gateway."""
    size = 1 << 32 - told["prefix"]
    gateway = int.from_bytes(_packed(told["gateway"]), "big")
    first = gateway & -size
    for step in range(1, size + 1):
        offset = (last + step) % size
        if offset in (0, gateway - first, size - 1):
            continue
        address = (first + offset).to_bytes(4, "big")
        path = f"{place}/{labels.dotted(address)}"
        # The kernel takes an interface apart some 50 ms after its namespace, which whoever joined it may hold.
        if hostpaths.exists(path + LEASED) or hostpaths.exists(f"{INTERFACES}/{labels.host_end(address)}"):
            continue
        try:
            posix.link(mine, path)
            return address, offset
        except FileExistsError:
            continue
    todo = "end some containers, or run agentshim net gc"
    raise HostError("network", told["bridge"], "one address more", f"{size - 3} addresses, all taken", todo)


def forsaken(directory: str, profile: str, records: str) -> bool:
    """Whether one of a few addresses has an owner that is gone, without a look at the kernel: neither the process is
    there that took it, nor what its record, in the directory `records`, says is the delegate's; nor anybody who joined
    its network. Which few: a window that our number chooses. A container that is just leaving may be taken for one that
    is gone: `net gc` looks again.
    """
    place = f"{directory}/{profile}/{ADDRESSES}"
    try:
        names = sorted(name for name in posix.listdir(place) if name[:1].isdigit() and not name.endswith(LEASED))
    except OSError:
        return False
    start = posix.getpid() % len(names) if names else 0
    for name in (names[start:] + names[:start])[:LOOK]:
        try:
            found = owner(f"{place}/{name}")
        except (OSError, ValueError):
            continue  # on its way, or gone by now
        if _lives(*found, records, ""):
            continue
        if not any(_lives(*claimant(one), records, one) for one in claims(f"{place}/{name}")):
            return True
    return False


def _lives(owner: str, pid: str, begun: str, records: str, claim: str) -> bool:
    return started(pid) == int(begun) or _is_there(f"{records}/{owner}.json", claim)


def owner(lease: str) -> tuple[str, str, str]:
    """(record, process that took it, its start) of whose an address is, given by its file; the record's name is behind
    ENDED where that one has. OSError where the address is nobody's, ValueError where the file is torn.
    """
    name, pid, begun = read(lease).decode("ascii").split()
    return name, pid, begun


def members_of(lease: str) -> str:
    """The directory of those who joined the network of an address, given by its file."""
    return lease.rpartition(f"/{ADDRESSES}/")[0] + f"/{MEMBERS}"


def claims(lease: str) -> list[str]:
    """The links to an address's file of those who joined its network."""
    place, first = members_of(lease), lease.rpartition("/")[2] + "."
    try:
        names = sorted(posix.listdir(place))
    except FileNotFoundError:
        return []
    return [f"{place}/{name}" for name in names if name.startswith(first) and name.count(".") > 4]


def claimant(claim: str) -> tuple[str, str, str]:
    """As `owner`, of one who joined."""
    pid, begun, owner = claim.rsplit(".", 3)[1:]
    return owner, pid, begun


def _is_there(record: str, claim: str) -> bool:
    try:
        told = wire.loads(read(record), "network", record)
        mine = isinstance(told, dict) and told.get("claim", "") == claim
        return mine and hostpaths.exists(f"{told['root']}/{told['id']}")  # type: ignore[index]
    except (OSError, ShimError, KeyError):
        return False


def place_of(directory: str, profile: str, address: bytes) -> str:
    """The file that keeps an address from others."""
    return f"{directory}/{profile}/{ADDRESSES}/{labels.dotted(address)}"


def give_back(directory: str, profile: str, address: bytes) -> None:
    """The end of `take`, where nothing of it has reached the kernel."""
    try:
        posix.unlink(place_of(directory, profile, address))
    except FileNotFoundError:
        pass


def template(directory: str, profile: str) -> bytes:
    """The plan of the last container; b'' where there is none."""
    try:
        return read(f"{directory}/{profile}/{PLAN}", MOST_BYTES)
    except OSError:
        return b""


def keep(directory: str, profile: str, data: bytes) -> None:
    """Keep a template for the next container. A disk that takes none makes that one slow, nothing else."""
    part = f"{directory}/{profile}/.{PLAN}.{posix.getpid()}"
    try:
        _write(part, data)
        posix.rename(part, f"{directory}/{profile}/{PLAN}")
    except OSError:
        try:
            posix.unlink(part)
        except OSError:
            pass


def leased(directory: str, profile: str, address: bytes) -> None:
    """The kernel is about to hold a lease of this address: `take` leaves it alone until `net gc` has looked."""
    _write(place_of(directory, profile, address) + LEASED, b"")


def locked(path: str) -> int:
    """A descriptor that holds a lock until it is closed; the kernel frees it if we are killed."""
    try:
        fd = posix.open(path, posix.O_RDWR | posix.O_CREAT | posix.O_NOFOLLOW | posix.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError("network", path, reason(error), "a writable /run", "make /run writable for root") from None
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def read(path: str, most: int = OF_PROC) -> bytes:
    """A file of ours, up to `most` bytes, or one of /proc."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_CLOEXEC)
    try:
        return posix.read(fd, min(posix.fstat(fd).st_size or OF_PROC, most))  # a buffer of 2 MiB takes 13 µs
    finally:
        posix.close(fd)


def started(pid: str) -> int:
    """When a process was started, in clock ticks since boot (proc_pid_stat(5), field 22); 0 if it is gone."""
    try:
        return int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return 0


def is_over(pid: str) -> bool:
    """Whether a process is gone, or is one that nobody has waited for yet."""
    try:
        return read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def _write(path: str, data: bytes) -> None:
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
    fd = posix.open(path, flags, 0o600)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))
