"""What was leased and has not been seen to end: one list a container, beside its record.

Belongs here: the list, and the look that finds what the kernel has ended since, for the audit log. Next door: `net` has
the verbs; `hooks.records` the kernel's side; `state` the file: what was asked -> "ADDRESS END" of each address that it
led to, END in milliseconds of the clock that the kernel's timeouts go by (it stands still in a suspend, and a boot
begins it anew, as it does /run).
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

from hooks import host_state, records
from shim import state
from shim.cold import audit
from shim.errors import HostError

Record = dict[str, Any]
Peer = tuple[str, str, int]  # protocol, address, port
Row = tuple[str, str, int]  # what was asked, an address that it led to, end


def addresses(record: Record, asked: str) -> list[str]:
    """What a peer, as it was given to `lease egress`, led to; [] where it is not leased."""
    return [address for word, address, _ in _read(record) if word == asked]


def granted(record: Record, asked: str, led_to: list[str], seconds: int) -> None:
    """Keeps that `asked` is about to be leased for so long from now."""
    end = now() + seconds * 1000
    fresh: list[Row] = [(asked, address, end) for address in led_to]
    with _Held():
        _write(record, [*_without(record, fresh), *fresh])


def revoked(record: Record, asked: str, led_to: list[str]) -> None:
    """Forgets leases that somebody has ended."""
    with _Held():
        _write(record, _without(record, [(asked, address, 0) for address in led_to]))


def settle(record: Record) -> list[str]:
    """Records, once, each lease that ended by itself since the last look: whose time is over, and which the kernel has
    no more. What they were, as policies write peers. HostError where the log refuses, or the network cannot be asked.
    """
    if not _read(record):
        return []
    with _Held():
        kept = _read(record)
        over = [row for row in kept if row[2] <= now()]
        pid = state.init_of(record) if over else 0
        running = {one[:3] for one in records.leases(f"/proc/{pid}/ns/net")} if pid else set()
        ended = [row for row in over if _peer(row) not in running]
        for row in ended:
            audit.write("lease_expired", record, peer=_word(row), ended=_when(row[2]))
        if ended:
            _write(record, [row for row in kept if row not in ended])
        return [_word(row) for row in ended]


def settle_all() -> int:
    """`settle` for every container; how many leases have ended. One whose network cannot be asked is asked at the next
    look.
    """
    count = 0
    for record in state.records():
        if record.get("network") is not None:
            try:
                count += len(settle(record))
            except HostError as error:
                if error.room == "audit":
                    raise
    return count


def now() -> int:
    """Milliseconds."""
    return time.monotonic_ns() // 1_000_000


def _peer(row: Row) -> Peer:
    head, _, port = row[0].rpartition(":")
    return "udp" if head.startswith("udp:") else "tcp", row[1], int(port)


def _word(row: Row) -> str:
    protocol, address, port = _peer(row)
    return f"{protocol}:{f'[{address}]' if ':' in address else address}:{port}"


def _when(end: int) -> str:
    ago = datetime.timedelta(milliseconds=now() - end)
    then = datetime.datetime.now(datetime.UTC) - ago
    return then.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _without(record: Record, rows: list[Row]) -> list[Row]:
    """The list without the peers of `rows`, however they were asked for."""
    peers = [_peer(row) for row in rows]
    return [row for row in _read(record) if _peer(row) not in peers]


def _read(record: Record) -> list[Row]:
    found = []
    for asked, every in state.leased(record).items():
        for one in every:
            address, _, end = one.partition(" ")
            found.append((asked, address, int(end or 0)))
    return found


def _write(record: Record, rows: list[Row]) -> None:
    told: dict[str, list[str]] = {}
    for asked, address, end in rows:
        told.setdefault(asked, []).append(f"{address} {end}")
    state.leased(record, told)


class _Held:
    """A lock of the lists' own: between a look and its record, no other look."""

    def __enter__(self) -> None:
        self._fd = host_state.locked(f"{state.DIRECTORY}/leases.lock")

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
