"""The hook: what it refuses before it acts, what it does, what it undoes, and what it could still do while it acts; in
its first call, and in the one at the container's end.

Every run is from inside a network namespace of the test's own, which is then "the host": a damaged plan must not reach
the machine's. The plans are written here by hand, from the kernel's headers, not by the code that writes them for real.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the hook needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root")
NEEDED = ("unshare", "nsenter", "ip", "nft")

MOST = 1 << 20
ROUTE, NETFILTER = 0, 12
CONTAINER, HOST = 0, 1
ONLY_EMPTY, KEEP, ONLY_BUILT = 0x100, 0x200, 0x1000
REQUEST, ACK, EXCL, CREATE = 1, 4, 0x200, 0x400
NOOP, NEWLINK, NEWADDR, DELADDR = 1, 16, 20, 21
NEWTABLE, DELTABLE, NEWELEMENT, DELELEMENT = 10 << 8, 10 << 8 | 2, 10 << 8 | 12, 10 << 8 | 14
NESTED_BIT = 0x8000
NOBODYS_PID = 9999999  # above any pid_max
LINE = re.compile(r"network: [a-z0-9 ]+: asked [^\n]+, ceiling [^\n]+: [^\n]+\n")
PODMANS = re.compile("permission denied|operation not permitted|no such file", re.IGNORECASE)


# --- plans, by hand ------------------------------------------------------------------------------------------------


def message(kind: int, body: bytes, flags: int = 0, ack: bool = True) -> bytes:
    """One netlink message, padded to 4."""
    head = struct.pack("=IHHII", 16 + len(body), kind, REQUEST | (ACK if ack else 0) | flags, 7, 0)
    return head + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def loopback(up: bool = True) -> bytes:
    return message(NEWLINK, struct.pack("=BxHiII", 0, 0, 1, int(up), 1))


def address(last: int, kind: int = NEWADDR) -> bytes:
    """127.0.0.<last>/32 on lo."""
    raw = bytes((127, 0, 0, last))
    body = struct.pack("=BBBBI", 2, 32, 0, 254, 1) + attribute(2, raw) + attribute(1, raw)
    return message(kind, body, CREATE | EXCL if kind == NEWADDR else 0)


def batch(*messages: bytes, end: bool = True) -> bytes:
    border = struct.pack("=BB2s", 0, 0, b"\0\x0a")
    begin = message(0x10, border, ack=False)
    return b"".join((begin, *messages, message(0x11, border, ack=False) if end else b""))


def table(name: str, kind: int = NEWTABLE) -> bytes:
    body = struct.pack("=BB2s", 1, 0, b"\0\0") + attribute(1, name.encode() + b"\0")
    return batch(message(kind, body, CREATE | EXCL if kind == NEWTABLE else 0))


def element(key: int, kind: int = DELELEMENT, where: str = "s", ack: bool = False) -> bytes:
    """One element of a set of ports in `table inet t`."""
    value = attribute(1, struct.pack(">H", key))
    for _ in ("key", "element"):
        value = attribute(1 | NESTED_BIT, value)
    body = struct.pack("=BB2s", 1, 0, b"\0\0") + attribute(1, b"t\0") + attribute(2, where.encode() + b"\0")
    return message(kind, body + attribute(3 | NESTED_BIT, value), CREATE if kind == NEWELEMENT else 0, ack)


def elements(*keys: int, kind: int = DELELEMENT, where: str = "s") -> bytes:
    """All in one batch, one message each; the last wants the answer."""
    return batch(*[element(key, kind, where, ack=key == keys[-1]) for key in keys])


class Step(NamedTuple):
    do: bytes
    undo: bytes = b""
    room: int = CONTAINER
    family: int = ROUTE
    acks: int = 1

    @property
    def raw(self) -> bytes:
        head = struct.pack("=5I", self.room, self.family, self.acks, len(self.do), len(self.undo))
        return head + self.do + bytes(-len(self.do) % 4) + self.undo + bytes(-len(self.undo) % 4)


def encode(*steps: Step) -> bytes:
    return b"ASNET\0\0\2" + struct.pack("=I", len(steps)) + b"".join(step.raw for step in steps)


UP = Step(loopback(), loopback(False))
ADDRESS = Step(address(5), address(5, DELADDR))
TABLE = Step(table("agentshim"), table("agentshim", DELTABLE), family=NETFILTER)
FAILS = Step(address(99, DELADDR))  # there is none: EADDRNOTAVAIL
WHOLE = encode(UP, ADDRESS, TABLE)


# --- rooms ---------------------------------------------------------------------------------------------------------


class Netns:
    """A network namespace, held open by a process in it."""

    def __init__(self) -> None:
        command = ["unshare", "--net", "sh", "-c", "echo; exec sleep 600"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"\n":
            self.process.wait()
            self.process.stdout.close()
            pytest.skip("no network namespace can be made here: THE HOOK IS NOT TESTED")

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, *command: str) -> Any:
        """The parsed JSON of a command's output, in here."""
        done = subprocess.run(["nsenter", f"--net=/proc/{self.pid}/ns/net", *command], capture_output=True, check=True)
        return json.loads(done.stdout or b"null")

    def addresses(self) -> set[str]:
        return {one["local"] for link in self.run("ip", "-j", "addr") for one in link["addr_info"]} - {"::1"}

    def is_up(self) -> bool:
        return "UP" in self.run("ip", "-j", "link", "show", "lo")[0]["flags"]

    def tables(self) -> set[str]:
        listed = self.run("nft", "-j", "list", "tables")["nftables"]
        return {entry["table"]["name"] for entry in listed if "table" in entry}

    def is_untouched(self) -> bool:
        return not self.is_up() and not self.tables() and self.addresses() <= {"127.0.0.1"}  # the kernel's own, once up

    def elements(self, name: str = "s") -> set[int]:
        listed = self.run("nft", "-j", "list", "set", "inet", "t", name)["nftables"]
        return {key for entry in listed for key in entry.get("set", {}).get("elem", ())}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Stage:
    """The hook, the container's namespace, and one that plays the host."""

    def __init__(self, hook: Path, scratch: Path, container: Netns, host: Netns) -> None:
        self.hook, self.scratch, self.container, self.host = hook, scratch, container, host

    def command(self, plan: Path, *more: str | Path) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.host.pid}/ns/net", str(self.hook), str(plan), *map(str, more)]

    def write(self, plan: bytes) -> Path:
        path = self.scratch / "plan"
        path.unlink(missing_ok=True)
        path.write_bytes(plan)
        path.chmod(0o600)
        return path

    def call(
        self, plan: bytes | Path = WHOLE, state: str | bytes | None = None, *words: str | Path, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        path = plan if isinstance(plan, Path) else self.write(plan)
        text = json.dumps({"ociVersion": "1.0.2", "pid": self.container.pid}) if state is None else state
        raw = text.encode() if isinstance(text, str) else text
        done = subprocess.run(self.command(path, *words), input=raw, capture_output=True, timeout=30, **more)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def undo(
        self, plan: bytes | Path, *lease: str | Path, state: str = "", **more: Any
    ) -> subprocess.CompletedProcess[str]:
        return self.call(plan, state, "undo", *lease, **more)

    def lease(self, text: str = "/run/agentshim/plan.json") -> Path:
        """A lease of the address for the plan that `write` writes, unless `text` says another's."""
        path = self.scratch / "10.0.0.2"
        path.write_text(text)
        return path


SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Before a call that does not return AddressSanitizer asks for the signal stack, which the filter forbids: so the test
# build has no such call. A report of a sanitizer is killed by the filter just so, and that is a failure of its own.
RETURNS = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#define _Noreturn
#define _exit(code) syscall(SYS_exit_group, code)
"""


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def hook(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing := [name for name in NEEDED if not shutil.which(name)]:
        pytest.skip(f"not installed: {' '.join(missing)}: THE HOOK IS NOT TESTED")
    base = tmp_path_factory.mktemp("hook")
    if request.param == "plain":
        return build.build_nethook(base / "agentshim-net")
    (base / "returns.h").write_text(RETURNS)
    return build.build_nethook(base / "agentshim-net", ["-include", str(base / "returns.h"), *SANITIZE], static=False)


@contextlib.contextmanager
def set_stage(hook: Path, scratch: Path) -> Iterator[Stage]:
    container, host = Netns(), Netns()
    try:
        yield Stage(hook, scratch, container, host)
    finally:
        container.end()
        host.end()


@pytest.fixture
def stage(hook: Path, tmp_path: Path) -> Iterator[Stage]:
    with set_stage(hook, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def worn(hook: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage for many runs, whatever they leave."""
    with set_stage(hook, tmp_path_factory.mktemp("worn")) as made:
        yield made


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 1 and one line of the contract's form, with `words` in it, and none that podman takes for a code."""
    assert done.returncode == 1, done
    assert LINE.fullmatch(done.stderr) and not PODMANS.search(done.stderr), done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


# --- the plan ------------------------------------------------------------------------------------------------------


def with_u32(raw: bytes, offset: int, value: int) -> bytes:
    return raw[:offset] + struct.pack("=I", value) + raw[offset + 4 :]


ONE = encode(TABLE)
AT = {"steps": 8, "room": 12, "family": 16, "acks": 20, "do": 24, "undo": 28, "first": 32}
SILENT = message(NOOP, b"", ack=False)

MALFORMED = {
    "empty": b"",
    "header cut": ONE[:11],
    "magic": b"ASNET\0\0\1" + ONE[8:],
    "magic without its end": b"ASNET\0\1\2" + ONE[8:],
    "no steps": encode(),
    "no steps, but bytes": with_u32(ONE, AT["steps"], 0),
    "a step more": with_u32(ONE, AT["steps"], 2),
    "too many steps": with_u32(ONE, AT["steps"], 4097),
    "4097 steps": encode(*[Step(message(NOOP, b""))] * 4097),
    "2^32-1 steps": with_u32(ONE, AT["steps"], 0xFFFFFFFF),
    "room 2": with_u32(ONE, AT["room"], 2),
    "room 2^32-1": with_u32(ONE, AT["room"], 0xFFFFFFFF),
    "room 2 with bits": with_u32(ONE, AT["room"], 2 | ONLY_EMPTY | KEEP),
    "room for both networks": with_u32(ONE, AT["room"], ONLY_EMPTY | ONLY_BUILT),
    "room with the bit below": with_u32(ONE, AT["room"], HOST | 0x80),
    "room with the bit above": with_u32(ONE, AT["room"], HOST | 0x2000),
    "room with the highest bit": with_u32(ONE, AT["room"], HOST | 0x80000000),
    "family 1": with_u32(ONE, AT["family"], 1),
    "family 2^32-1": with_u32(ONE, AT["family"], 0xFFFFFFFF),
    "no answers": with_u32(ONE, AT["acks"], 0),
    "an answer more": with_u32(ONE, AT["acks"], 2),
    "2^32-1 answers": with_u32(ONE, AT["acks"], 0xFFFFFFFF),
    "do longer than the file": with_u32(ONE, AT["do"], len(ONE)),
    "do of 2^32-1": with_u32(ONE, AT["do"], 0xFFFFFFFF),
    "do of 2^32-3": with_u32(ONE, AT["do"], 0xFFFFFFFD),
    "do a word shorter": with_u32(ONE, AT["do"], len(TABLE.do) - 4),
    "do of nothing": encode(Step(b"", acks=0)),
    "undo longer than the file": with_u32(ONE, AT["undo"], len(ONE)),
    "undo of 2^32-1": with_u32(ONE, AT["undo"], 0xFFFFFFFF),
    "undo a word shorter": with_u32(ONE, AT["undo"], len(TABLE.undo) - 4),
    "a byte cut": ONE[:-1],
    "a word cut": ONE[:-4],
    "a byte more": ONE + b"\0",
    "a word more": ONE + bytes(4),
    "three bytes above 1 MiB": ONE + bytes(MOST + 3 - len(ONE)),
    "a word above 1 MiB": ONE + bytes(MOST + 4 - len(ONE)),
    "message of length 0": with_u32(ONE, AT["first"], 0),
    "message shorter than its head": with_u32(ONE, AT["first"], 15),
    "message that runs past its step": with_u32(ONE, AT["first"], len(TABLE.do) + 1),
    "message of 2^32-1": with_u32(ONE, AT["first"], 0xFFFFFFFF),
    "message of 2^32-3, whose alignment is 0": with_u32(ONE, AT["first"], 0xFFFFFFFD),
    "message that is no request": encode(Step(loopback()[:6] + struct.pack("=H", ACK) + loopback()[8:])),
    "rest of a message": encode(Step(loopback() + bytes(8))),
    "undo that is no message": encode(Step(loopback(), b"\1\2\3\4")),
    "undo that is no request": encode(Step(loopback(), bytes(16))),
    "batch without an end": encode(Step(batch(SILENT, message(NEWTABLE, b"1234"), end=False), family=NETFILTER)),
    "padding": encode(Step(message(NOOP, b"123")[:-1] + b"\1"))[: AT["do"]]
    + struct.pack("=II", 19, 0)
    + (message(NOOP, b"123")[:-1] + b"\1"),
    "second step cut": encode(TABLE, UP)[:-40],
    "second step cut at 1 MiB": encode(Step(message(NOOP, bytes(MOST - 12 - 20 - 16 - 8))), UP)[:MOST],
}
MALFORMED["message of 19 bytes padded with something"] = MALFORMED.pop("padding")


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_plan(stage: Stage, case: str) -> None:
    refused(stage.call(MALFORMED[case]), "network: plan: asked ")
    lease = stage.lease()
    refused(stage.undo(MALFORMED[case], lease), "network: plan: asked ")
    assert stage.container.is_untouched() and stage.host.is_untouched() and lease.exists()


def test_what_is_wrong_in_the_last_step_is_found_before_the_first_is_done(stage: Stage) -> None:
    refused(stage.call(encode(UP, ADDRESS, TABLE._replace(room=7))), "plan", "unknown room")
    assert stage.container.is_untouched()


UNTRUSTED = [
    "another's",
    "group may write",
    "others may write",
    "absent",
    "symlink",
    "FIFO",
    "directory",
    "device",
]


def spoil(path: Path, how: str) -> None:
    """Make the plan at `path` one that must not be believed."""
    if how == "another's":
        os.chown(path, 1000, 0)
        path.chmod(0o644)  # readable without CAP_DAC_OVERRIDE, which the hook has given up
    elif how.endswith("write"):
        path.chmod(0o620 if how.startswith("group") else 0o602)
    elif how == "symlink":
        path.rename(path.parent / "real")
        path.symlink_to("real")
    else:
        path.unlink()
    if how == "FIFO":
        os.mkfifo(path, 0o600)
    elif how == "directory":
        path.mkdir()
    elif how == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


@pytest.mark.parametrize("case", UNTRUSTED)
def test_untrusted_plan(stage: Stage, case: str) -> None:
    path = stage.write(WHOLE)
    spoil(path, case)
    refused(stage.call(path), "network: plan: asked ", str(path))
    assert stage.container.is_untouched()
    if case != "absent":  # then nothing is to be undone
        refused(stage.undo(path), "network: plan: asked ", str(path))


ARGUMENTS = ["", "P P", "P redo", "P UNDO", "P undoo", "P und", "P undo P P P", "undo P"]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_other_arguments(stage: Stage, arguments: str) -> None:
    words = arguments.replace("P", str(stage.write(WHOLE))).split()
    done = subprocess.run([stage.hook, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    refused(done, "network: call: " if arguments != "undo P" else "network: ")


def messages_of(raw: bytes, family: int) -> list[tuple[int, int]] | None:
    """(type, flags) of each; None where `raw` is not whole requests."""
    found = []
    while raw:
        if len(raw) < 16:
            return None
        length, kind, flags = struct.unpack_from("=IHH", raw)
        if not 16 <= length <= len(raw) or not flags & REQUEST:
            return None
        found.append((kind, flags))
        raw = raw[length + -length % 4 :]
    closed = not found or found[0][0] != 0x10 or found[-1][0] == 0x11
    return found if closed or family != NETFILTER else None


def is_whole(raw: bytes) -> bool:
    """The contract's words, as plain Python."""
    if len(raw) > MOST or len(raw) % 4 or len(raw) < 12 or raw[:8] != b"ASNET\0\0\2":
        return False
    (count,) = struct.unpack_from("=I", raw, 8)
    rest = raw[12:]
    for _ in range(count if count <= 4096 else 0):
        if len(rest) < 20:
            return False
        room, family, acks, *lengths = struct.unpack_from("=5I", rest)
        rest = rest[20:]
        parts = []
        for length in lengths:
            padded = length + -length % 4
            if padded > len(rest) or any(rest[length:padded]):
                return False
            parts.append(messages_of(rest[:length], family))
            rest = rest[padded:]
        if (
            room & ~0x1F00 > 1
            or room & 0x1100 == 0x1100
            or family not in (ROUTE, NETFILTER)
            or parts[0] is None
            or parts[1] is None
        ):
            return False
        if acks == 0 or acks != sum(1 for _, flags in parts[0] if flags & ACK):
            return False
    return not rest and 0 < count <= 4096


NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    11,
    12,
    13,
    15,
    16,
    17,
    20,
    36,
    0x100,
    0x101,
    0x200,
    0x201,
    0x301,
    0x302,
    0x400,
    0x800,
    4096,
    0x2000,
]
EDGES = st.sampled_from([*NUMBERS, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    raw = bytearray(draw(st.sampled_from([ONE, WHOLE, encode(FAILS), encode(UP, UP)])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        how = draw(st.sampled_from(["flip", "word", "word", "cut", "insert", "remove"]))
        if how == "flip" and raw:
            raw[at] ^= draw(st.integers(1, 255))
        elif how == "word":
            at -= at % 4
            raw[at : at + 4] = struct.pack("=I", draw(EDGES))
        elif how == "cut":
            del raw[at:]
        elif how == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            del raw[at : at + draw(st.integers(1, 8))]
    return bytes(raw)


HARSH = settings(max_examples=300, deadline=None)


@HARSH
@given(raw=damaged())
def test_damaged_plan_is_refused_iff_the_contract_says_so(worn: Stage, raw: bytes) -> None:
    done = worn.call(raw)
    assert done.returncode in (0, 1), done
    if done.returncode:
        refused(done)
    assert done.stderr.startswith("network: plan:") == (not is_whole(raw)), (done, raw)


@HARSH
@given(raw=damaged())
def test_damaged_plan_is_not_undone_in_parts(worn: Stage, raw: bytes) -> None:
    done = worn.undo(raw)
    assert done.returncode in (0, 1), done
    if done.returncode:
        refused(done)
    assert done.stderr.startswith("network: plan:") == (not is_whole(raw)), (done, raw)


# --- the state -----------------------------------------------------------------------------------------------------

PID = NOBODYS_PID
STATES = {
    "plain": (f'{{"pid":{PID}}}', True),
    "blanks": (f' \t\r\n{{ "id" : "x" ,\n"pid" :\t{PID} }}\n', True),
    "last of many": (
        f'{{"a":{{"pid":1}},"b":[1,{{"pid":2}}],"c":"\\"pid\\":3","d":null,"e":-1.5E3,"pid":{PID}}}',
        True,
    ),
    "first of many": (f'{{"pid":{PID},"a":"}}","b":{{"c":"]"}},"d":[[["["]]]}}', True),
    "escapes": (f'{{"a":"\\\\","b":"\\u0022,\\"pid\\":1","pid":{PID}}}', True),
    "UTF-8": (f'{{"a":"é€😀","pid":{PID}}}', True),
    "63 deep": (f'{{"a":{"[" * 63}{"]" * 63},"pid":{PID}}}', True),
    "empty": ("", False),
    "blank": (" \n", False),
    "1 MiB of blanks": (" " * MOST, False),
    "more than 1 MiB": (f'{{"pid":{PID}}}' + " " * MOST, False),
    "no object": (f"{PID}", False),
    "a list": (f'["pid",{PID}]', False),
    "empty object": ("{}", False),
    "no pid": ('{"id":"x"}', False),
    "nested only": (f'{{"a":{{"pid":{PID}}}}}', False),
    "in a list only": (f'{{"a":["pid",{PID}]}}', False),
    "in a string only": (f'{{"a":"\\"pid\\":{PID}"}}', False),
    "twice": (f'{{"pid":{PID},"pid":{PID}}}', False),
    "twice, once by an escape": (f'{{"p\\u0069d":1,"pid":{PID}}}', False),
    "by an escape": (f'{{"\\u0070id":{PID}}}', False),
    "another case": (f'{{"PID":{PID}}}', False),
    "prefix": (f'{{"pidx":{PID}}}', False),
    "a string": (f'{{"pid":"{PID}"}}', False),
    "zero": ('{"pid":0}', False),
    "negative": (f'{{"pid":-{PID}}}', False),
    "plus": (f'{{"pid":+{PID}}}', False),
    "fraction": (f'{{"pid":{PID}.0}}', False),
    "exponent": ('{"pid":1e3}', False),
    "leading zero": ('{"pid":0123}', False),
    "hexadecimal": ('{"pid":0x12}', False),
    "letters behind": (f'{{"pid":{PID}a}}', False),
    "8 digits": ('{"pid":12345678}', False),
    "2^32 + 1": ('{"pid":4294967297}', False),
    "2^64 + 1": ('{"pid":18446744073709551617}', False),
    "null": ('{"pid":null}', False),
    "a list of one": (f'{{"pid":[{PID}]}}', False),
    "nothing": ('{"pid":}', False),
    "no colon": (f'{{"pid" {PID}}}', False),
    "no comma": (f'{{"id":"x" "pid":{PID}}}', False),
    "comma at the end": (f'{{"pid":{PID},}}', False),
    "comma first": (f'{{,"pid":{PID}}}', False),
    "second object": (f'{{"pid":{PID}}}{{}}', False),
    "text behind": (f'{{"pid":{PID}}} x', False),
    "not closed": (f'{{"pid":{PID}', False),
    "not closed, with comma": (f'{{"pid":{PID},', False),
    "string not closed": (f'{{"pid":{PID},"a":"x', False),
    "escape at the end": (f'{{"pid":{PID},"a":"\\', False),
    "escape, then a control byte": (f'{{"pid":{PID},"a":"\\\n"}}', False),
    "newline in a string": (f'{{"pid":{PID},"a":"\n"}}', False),
    "brackets crossed": (f'{{"a":[{{]}},"pid":{PID}}}', False),
    "brackets not closed": (f'{{"a":[[],"pid":{PID}}}', False),
    "64 deep": (f'{{"a":{"[" * 64}{"]" * 64},"pid":{PID}}}', False),
    "100,000 deep": (f'{{"a":{"[" * 100000}', False),
    "NUL behind": (f'{{"pid":{PID}}}\0', False),
    "NUL within": (f'{{"pid":{PID}\0,"pid":1}}', False),
    "byte order mark": (f'\ufeff{{"pid":{PID}}}', False),
    "comment": (f'{{/**/"pid":{PID}}}', False),
    "single quotes": (f"{{'pid':{PID}}}", False),
}


@pytest.mark.parametrize("case", STATES)
def test_state(worn: Stage, case: str) -> None:
    text, fine = STATES[case]
    done = worn.call(ONE, text)
    if fine:
        refused(done, f"network: namespace: asked /proc/{PID}/ns/net, ceiling not there")
    else:
        refused(done, "network: state: asked ")


def pid_it_read(done: subprocess.CompletedProcess[str]) -> int | None:
    found = re.match(r"network: namespace: asked /proc/(\d+)/ns/net", done.stderr)
    return int(found[1]) if found else None


KEYS = st.sampled_from(["pid", "id", "pi", "bundle", 'a"pid":1,', "\\", "}", "é"])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8), KEYS
)
NESTED = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


@HARSH
@given(more=st.dictionaries(KEYS, NESTED, max_size=5), pid=st.integers(5_000_000, 9_999_999), pretty=st.booleans())
def test_state_is_read_as_json_reads_it(worn: Stage, more: dict[str, object], pid: int, pretty: bool) -> None:
    text = json.dumps({**more, "pid": pid}, ensure_ascii=pretty, indent=1 if pretty else None)
    done = worn.call(ONE, text.encode("utf-8", "replace"))
    if any("\\" in json.dumps(key, ensure_ascii=pretty) for key in more):
        refused(done, "network: state: asked ")
    else:
        assert pid_it_read(done) == pid


@HARSH
@given(st.data())
def test_damaged_state_is_never_read_as_another_pid(worn: Stage, data: st.DataObject) -> None:
    raw = bytearray(json.dumps({"a": [{"pid": 5000001}, "\\"], "pid": PID, "b": {"c": '"pid":5000002'}}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(b'"\\{}[],: 05a\0\n')).to_bytes(
            1, "big"
        )
    done = worn.call(ONE, bytes(raw))
    if (read := pid_it_read(done)) is None:
        refused(done)
        return
    try:
        told = json.loads(raw)
    except ValueError:  # what is nested is matched, not parsed
        assert str(read).encode() in raw
    else:
        assert told["pid"] == read


# --- the namespace -------------------------------------------------------------------------------------------------


def test_the_hosts_own_namespace_is_refused(stage: Stage) -> None:
    refused(stage.call(state=json.dumps({"pid": stage.host.pid})), "network: namespace: ", "not the host's")
    assert stage.host.is_untouched()


def test_no_such_process(stage: Stage) -> None:
    refused(stage.call(state=json.dumps({"pid": NOBODYS_PID})), "network: namespace: ", "not there")


# --- doing and undoing ---------------------------------------------------------------------------------------------


def test_plan_is_done(stage: Stage) -> None:
    done = stage.call()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stage.container.is_up() and stage.container.tables() == {"agentshim"}
    assert stage.container.addresses() == {"127.0.0.1", "127.0.0.5"}
    assert stage.host.is_untouched()


def test_room_1_is_the_hosts_side(stage: Stage) -> None:
    steps = UP._replace(room=HOST), TABLE._replace(room=HOST), ADDRESS
    assert stage.call(encode(*steps)).returncode == 0
    assert stage.host.is_up() and stage.host.tables() == {"agentshim"} and stage.host.addresses() == {"127.0.0.1"}
    assert stage.container.addresses() == {"127.0.0.5"} and not stage.container.tables()


def test_failure_undoes_what_was_done(stage: Stage) -> None:
    refused(
        stage.call(encode(TABLE, ADDRESS, FAILS, UP)), "step 3: asked addresses and links in the container's network"
    )
    assert stage.container.is_untouched()


def test_failure_undoes_both_rooms(stage: Stage) -> None:
    done = stage.call(encode(TABLE._replace(room=HOST), ADDRESS, FAILS._replace(room=HOST)))
    refused(done, "step 3: asked addresses and links in the host's network", "ceiling every step acknowledged")
    assert stage.container.is_untouched() and stage.host.is_untouched()


def test_undo_runs_in_reverse_and_its_errors_are_ignored(stage: Stage) -> None:
    first = Step(address(6), address(7, DELADDR))  # only in reverse order is there something to remove
    second = Step(address(8), address(7))
    third = Step(address(9), address(100, DELADDR))
    refused(stage.call(encode(first, second, third, FAILS)), "step 4")
    assert stage.container.addresses() == {"127.0.0.6", "127.0.0.8", "127.0.0.9"}


def test_step_that_failed_is_not_undone(stage: Stage) -> None:
    """What EEXIST found there is another's: to remove the lock of a network that is confined would be an escape."""
    assert stage.call(encode(TABLE)).returncode == 0
    refused(stage.call(encode(TABLE)), "step 1: asked nf_tables", "it is there already", "confined already")
    assert stage.container.tables() == {"agentshim"}


def test_only_the_first_step_in_the_container_means_confined_already(stage: Stage) -> None:
    assert stage.call(encode(TABLE)).returncode == 0
    host = UP._replace(room=HOST)
    refused(stage.call(encode(host, TABLE)), "step 2", "confined already")
    again = stage.call(encode(ADDRESS, TABLE))
    refused(again, "step 2", "it is there already; what was done before is undone")
    twice = TABLE._replace(room=HOST)
    assert "confined" not in stage.call(encode(twice, twice)).stderr


# --- only where the network is empty -------------------------------------------------------------------------------

SPARE_UP = UP._replace(room=ONLY_EMPTY)
SPARE_TABLE = TABLE._replace(room=ONLY_EMPTY)
NAMED_LINKS = {
    "nothing": [],
    "lo": ["lo"],
    "one": ["v0"],
    "other": ["v1"],
    "both": ["v1", "v0"],
    "with lo": ["lo", "v0"],
}


@pytest.mark.parametrize("case", NAMED_LINKS)
def test_only_in_an_empty_network(stage: Stage, case: str) -> None:
    """Empty is what has nothing up but lo. Interfaces that are down, as tunl0 in any new namespace, do not count."""
    stage.container.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for name in NAMED_LINKS[case]:
        stage.container.run("ip", "link", "set", name, "up")
    empty = set(NAMED_LINKS[case]) <= {"lo"}
    done = stage.call(encode(SPARE_TABLE, ADDRESS, SPARE_UP._replace(room=HOST | ONLY_EMPTY)))
    assert (done.returncode, done.stderr) == (0, "")
    assert stage.container.tables() == ({"agentshim"} if empty else set())
    assert stage.host.is_up() == empty
    assert "127.0.0.5" in stage.container.addresses()


@pytest.mark.parametrize("case", NAMED_LINKS)
def test_only_in_an_engines_network(stage: Stage, case: str) -> None:
    """In place of what is only for an empty one: of both locks that a plan has, one is made."""
    stage.container.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for name in NAMED_LINKS[case]:
        stage.container.run("ip", "link", "set", name, "up")
    built = not set(NAMED_LINKS[case]) <= {"lo"}
    done = stage.call(encode(SPARE_TABLE, TABLE._replace(room=ONLY_BUILT), ADDRESS._replace(room=ONLY_BUILT)))
    assert (done.returncode, done.stderr) == (0, "")
    assert stage.container.tables() == {"agentshim"}
    assert ("127.0.0.5" in stage.container.addresses()) == built


def test_a_plan_for_an_engines_network_alone_looks_too(stage: Stage) -> None:
    stage.container.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    plan = encode(ADDRESS, TABLE._replace(room=ONLY_BUILT))
    assert stage.call(plan).returncode == 0 and not stage.container.tables()
    stage.container.run("ip", "address", "flush", "dev", "lo")
    stage.container.run("ip", "link", "set", "v0", "up")
    assert stage.call(plan).returncode == 0 and stage.container.tables() == {"agentshim"}


def test_two_hundred_interfaces_are_all_looked_at(stage: Stage) -> None:
    """More than one datagram of the kernel's, and the one that is up is the last."""
    lines = [f"link add v{n} type veth peer name w{n}" for n in range(100)]
    net = f"--net=/proc/{stage.container.pid}/ns/net"
    subprocess.run(["nsenter", net, "ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    assert stage.call(encode(SPARE_TABLE)).returncode == 0
    assert stage.container.tables() == {"agentshim"}
    stage.container.run("nft", "flush", "ruleset")
    stage.container.run("ip", "link", "set", "v99", "up")
    assert stage.call(encode(SPARE_TABLE)).returncode == 0
    assert not stage.container.tables()


def test_what_was_not_done_is_not_undone(stage: Stage) -> None:
    stage.container.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    stage.container.run("ip", "link", "set", "v0", "up")
    stage.container.run("nft", "add", "table", "inet", "agentshim")
    refused(stage.call(encode(SPARE_TABLE, ADDRESS, FAILS)), "step 3")
    assert stage.container.tables() == {"agentshim"} and "127.0.0.5" not in stage.container.addresses()


def test_steps_that_were_not_done_do_not_hide_that_it_is_confined_already(stage: Stage) -> None:
    stage.container.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    stage.container.run("ip", "link", "set", "v0", "up")
    stage.container.run("nft", "add", "table", "inet", "agentshim")
    refused(stage.call(encode(SPARE_UP, TABLE)), "step 2", "confined already")


def test_all_steps_left_out(stage: Stage) -> None:
    stage.container.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    stage.container.run("ip", "link", "set", "v0", "up")
    assert stage.call(encode(SPARE_TABLE, SPARE_UP)).returncode == 0
    assert not stage.container.tables()


def test_keep_is_undone_when_a_later_step_fails(stage: Stage) -> None:
    kept = TABLE._replace(room=HOST | KEEP), ADDRESS._replace(room=KEEP | ONLY_EMPTY)
    refused(stage.call(encode(*kept, FAILS)), "step 3")
    assert stage.container.is_untouched() and stage.host.is_untouched()


# --- the second call -----------------------------------------------------------------------------------------------

PORTS = "add table inet t; add set inet t s { type inet_service; elements = { 1, 2, 3, 4, 5, 6 }; };"
PORTS += "add set inet t r { type inet_service; elements = { 1 }; }"


def undone(*keys: int, room: int = HOST) -> Step:
    """A step whose undoing deletes elements; it does nothing."""
    return Step(message(NOOP, b""), elements(*keys), room, NETFILTER)


@pytest.fixture
def furnished(stage: Stage) -> Stage:
    stage.host.run("nft", PORTS)
    return stage


def test_undo_deletes_what_the_hosts_side_has(furnished: Stage) -> None:
    steps = undone(1, 2), undone(3, room=HOST | ONLY_EMPTY), undone(4, room=HOST | KEEP), undone(5, room=CONTAINER)
    lease = furnished.lease()
    done = furnished.undo(encode(*steps, UP), lease)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert furnished.host.elements() == {4, 5, 6}
    assert not furnished.host.is_up() and furnished.container.is_untouched()
    assert not lease.exists()


def test_undo_does_nothing_of_what_is_to_be_done(furnished: Stage) -> None:
    assert furnished.undo(encode(TABLE, TABLE._replace(room=HOST), UP._replace(room=HOST, undo=b""))).returncode == 0
    assert furnished.container.is_untouched() and not furnished.host.is_up()
    assert furnished.host.tables() == {"t"}


def test_undo_is_in_reverse(furnished: Stage) -> None:
    """The last step's comes first: only so the element is there for it, and gone in the end."""
    add = Step(message(NOOP, b""), elements(9, kind=NEWELEMENT), HOST, NETFILTER)
    assert furnished.undo(encode(undone(9), add)).returncode == 0
    assert 9 not in furnished.host.elements()
    assert furnished.undo(encode(add, undone(9))).returncode == 0
    assert 9 in furnished.host.elements()


@pytest.mark.parametrize("gone", ["none", "first", "middle", "last", "all", "twice"])
def test_undo_of_what_is_gone_in_part(furnished: Stage, gone: str) -> None:
    """The kernel does a batch whole or not at all: the rest must not stay because one element is gone."""
    keys = {
        "none": (1, 2, 3),
        "first": (9, 1, 2),
        "middle": (1, 9, 2),
        "last": (1, 2, 9),
        "all": (8, 9),
        "twice": (1, 1),
    }
    lease = furnished.lease()
    done = furnished.undo(encode(undone(4), undone(*keys[gone]), undone(5)), lease)
    assert (done.returncode, done.stderr) == (0, "")
    assert furnished.host.elements() == {1, 2, 3, 6} - set(keys[gone]) and not lease.exists()


def test_undo_where_set_table_or_interface_is_gone(furnished: Stage) -> None:
    no_device = message(29, struct.pack("=BxxxiHBB", 2, 77, 0x80, 0, 0) + attribute(1, bytes(4)))  # ENODEV
    no_address = message(DELADDR, struct.pack("=BBBBI", 2, 32, 0, 254, 77))
    for gone in (no_device, no_address):
        assert furnished.undo(encode(Step(message(NOOP, b""), gone, HOST), undone(1))).returncode == 0
    nowhere = Step(message(NOOP, b""), elements(1, 2, where="none"), HOST, NETFILTER)
    assert furnished.undo(encode(nowhere)).returncode == 0
    furnished.host.run("nft", "flush", "ruleset")
    lease = furnished.lease()
    assert furnished.undo(encode(undone(1, 2), undone(3)), lease).returncode == 0
    assert not lease.exists()


def test_undo_again_is_nothing(furnished: Stage) -> None:
    for _ in range(2):
        assert furnished.undo(encode(undone(1, 2))).returncode == 0
    assert furnished.host.elements() == {3, 4, 5, 6}


@pytest.mark.parametrize("kind", ["message", "batch", "one of a batch"])
def test_undo_that_fails_keeps_the_lease_and_goes_on(furnished: Stage, kind: str) -> None:
    """The address is not free while anything of the container is left."""
    wrong = {
        "message": Step(message(NOOP, b""), address(99, DELADDR), HOST),  # EADDRNOTAVAIL
        "batch": Step(message(NOOP, b""), table("t"), HOST, NETFILTER),  # EEXIST
        "one of a batch": Step(message(NOOP, b""), batch(element(9), element(2), table("t")[20:-20]), HOST, NETFILTER),
    }[kind]
    lease = furnished.lease()
    done = furnished.undo(encode(undone(1), wrong, undone(3)), lease)
    where = "addresses and links" if kind == "message" else "nf_tables"
    refused(done, f"step 2: asked {where} in the host's network", "all of it undone", "agentshim net gc")
    assert lease.exists()
    left = furnished.host.elements()
    assert 1 not in left and 3 not in left


def test_undo_of_many_elements_of_which_one_is_gone(furnished: Stage) -> None:
    many = list(range(100, 1100))
    furnished.host.run("nft", f"add element inet t s {{ {', '.join(map(str, many))} }}")
    assert furnished.undo(encode(undone(*many, 9))).returncode == 0
    assert furnished.host.elements() == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("state", ["", "{}", '{"pid":0}', '{"pid":1}', "garbage\0", "x" * (MOST + 10)])
def test_undo_does_not_care_for_the_state(furnished: Stage, state: str) -> None:
    done = furnished.undo(encode(undone(1)), state=state)
    assert (done.returncode, done.stderr) == (0, "") and 1 not in furnished.host.elements()


@pytest.mark.parametrize("closed", [0, 1])
def test_undo_with_closed_descriptors(furnished: Stage, closed: int) -> None:
    plan, lease = furnished.write(encode(undone(1))), furnished.lease()
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *furnished.command(plan, "undo", lease)]
    done = subprocess.run(command, input="{}", capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert 1 not in furnished.host.elements() and not lease.exists()


def test_undo_without_a_plan_is_nothing_to_undo(furnished: Stage) -> None:
    lease = furnished.lease()
    done = furnished.undo(furnished.scratch / "absent", lease)
    assert (done.returncode, done.stderr) == (0, "") and lease.exists()


NAMES = {"plan": True, "plan\n": True, "/a/b.c/plan.json": True, "plan.net": True, "/a/plan\nmore": True}
NAMES |= {"": False, "\n": False, "pla": False, "plans": False, "/plan/x": False, ".plan": False, "x\nplan": False}


@pytest.mark.parametrize("text", NAMES)
def test_a_lease_names_its_plan(furnished: Stage, text: str) -> None:
    """gc may have given the address to another container since: its elements and its lease must stay."""
    lease = furnished.lease(text)
    done = furnished.undo(encode(undone(1)), lease)
    assert (done.returncode, done.stderr) == (0, "")
    assert (1 not in furnished.host.elements()) == NAMES[text] == (not lease.exists())


def test_a_lease_that_is_gone_was_undone_already(furnished: Stage) -> None:
    assert furnished.undo(encode(undone(1)), furnished.scratch / "absent").returncode == 0
    assert 1 in furnished.host.elements()


@pytest.mark.parametrize("case", ["symlink", "directory", "FIFO", "long"])
def test_a_lease_that_is_no_file(furnished: Stage, case: str) -> None:
    lease = furnished.lease()
    if case != "long":
        spoil(lease, case)
    done = furnished.undo(encode(undone(1)), "/" + "./" * 2050 * (case == "long") + str(lease)[1:])
    if case == "FIFO":  # names nobody
        assert done.returncode == 0
    else:
        refused(done, "network: lease: asked ")
    assert 1 in furnished.host.elements()


def test_undo_waits_for_who_holds_the_lease_and_does_nothing_when_it_is_gone(furnished: Stage) -> None:
    """gc unlinks it; then the address is another's, and so are the elements."""
    plan, lease = furnished.write(encode(undone(1))), furnished.lease()
    with lease.open() as gc:
        fcntl.flock(gc, fcntl.LOCK_EX)
        with subprocess.Popen(furnished.command(plan, "undo", lease), stdin=subprocess.DEVNULL) as process:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.3)
                lease.unlink()
                lease.write_text("/run/agentshim/another.json")
                fcntl.flock(gc, fcntl.LOCK_UN)
                assert process.wait(10) == 0
            finally:
                process.kill()
    assert 1 in furnished.host.elements() and lease.exists()


def joined(stage: Stage, name: str, lease: Path) -> Path:
    """A claim of one who joined the network of the lease."""
    (claim := stage.scratch / name).hardlink_to(lease)
    return claim


@pytest.mark.parametrize("order", ["obc", "boc", "bco", "cbo"])
def test_the_last_in_a_network_takes_it_back(furnished: Stage, order: str) -> None:
    """Owner, or one of two who joined: only then elements, lease and the plan of those who joined go."""
    plan, lease = furnished.write(encode(undone(1))), furnished.lease()
    (shared := furnished.scratch / "10.0.0.2.net").write_bytes(plan.read_bytes())
    shared.chmod(0o600)
    words = {"o": (plan, lease)} | {one: (shared, lease, joined(furnished, one, lease)) for one in "bc"}
    for place, one in enumerate(order, 1):
        for _ in range(2):  # a hook that comes again has no part in it any more
            done = furnished.undo(*words[one])
            assert (done.returncode, done.stderr) == (0, "")
            there = place < len(order)
            assert (1 in furnished.host.elements()) == lease.exists() == there
            assert shared.exists() == any(other in order[place:] for other in "bc")
    assert plan.exists() and [path.name for path in furnished.scratch.iterdir() if path.name in "bc"] == []


@pytest.mark.parametrize("case", ["lease", "claim"])
def test_a_claim_on_another_lease(furnished: Stage, case: str) -> None:
    """The address is another network's by now, or the claim is: elements and lease are, too."""
    lease = furnished.lease()
    claim = joined(furnished, "b", lease)
    if case == "lease":
        lease.unlink()
        furnished.lease("-another")
    else:
        claim.unlink()
        (furnished.scratch / "b").write_text("-plan")
        joined(furnished, "c", claim)
    done = furnished.undo(encode(undone(1)), lease, claim)
    assert (done.returncode, done.stderr) == (0, "") and lease.exists() and 1 in furnished.host.elements()


def test_a_claim_that_cannot_be_let_go(furnished: Stage) -> None:
    """Then nothing is taken back: who is in that network is not known."""
    lease = furnished.lease("-plan")
    (closed := furnished.scratch / "closed").mkdir()
    (claim := closed / "b").hardlink_to(lease)
    closed.chmod(0o500)  # the hook has given up what would let it in
    refused(furnished.undo(encode(undone(1)), lease, claim), "network: lease: asked ", "net gc")
    assert lease.exists() and claim.exists() and 1 in furnished.host.elements()


def test_a_claim_waits_for_who_holds_the_lease(furnished: Stage) -> None:
    """gc lets go of it: then whoever is left takes the network back."""
    plan, lease = furnished.write(encode(undone(1))), furnished.lease("-plan")
    claim = joined(furnished, "b", lease)
    with lease.open() as gc:
        fcntl.flock(gc, fcntl.LOCK_EX)
        with subprocess.Popen(furnished.command(plan, "undo", lease, claim), stdin=subprocess.DEVNULL) as process:
            try:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.3)
                claim.unlink()
                fcntl.flock(gc, fcntl.LOCK_UN)
                assert process.wait(10) == 0
            finally:
                process.kill()
    assert lease.exists() and 1 in furnished.host.elements()


# --- more of doing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", ["first", "last"])
def test_error_of_a_message_that_wanted_no_answer(stage: Stage, silent: str) -> None:
    """The kernel tells errors unasked: they must not be taken for an answer too many and left unread."""
    bad = message(DELADDR, struct.pack("=BBBBI", 2, 32, 0, 254, 1) + attribute(2, b"\x7f\0\0\x63"), ack=False)
    do = bad + loopback() if silent == "first" else loopback() + bad
    refused(stage.call(encode(ADDRESS, Step(do))), "step 2")
    assert stage.container.addresses() <= {"127.0.0.1"}


def test_answers_that_overflow_are_a_failure(stage: Stage) -> None:
    many = 60_000
    done = stage.call(encode(ADDRESS, Step(message(NOOP, b"") * many, acks=many)))
    refused(done, "step 2", "o buffer space available")
    assert stage.container.is_untouched()


def test_answer_that_is_no_acknowledgement_is_a_failure(stage: Stage) -> None:
    asks = message(18, struct.pack("=BxHiII", 0, 0, 1, 0, 0))  # RTM_GETLINK
    refused(stage.call(encode(ADDRESS, Step(asks))), "step 2", "an answer that is none")
    assert stage.container.is_untouched()


def test_large_step_is_one_datagram(stage: Stage) -> None:
    """Above the default of 208 KiB; and a thousand answers."""
    do = message(NOOP, bytes(700_000)) + message(NOOP, b"") * 999
    done = stage.call(encode(Step(do, acks=1000)))
    assert done.returncode == 0, done


def test_as_many_steps_as_may_be(stage: Stage) -> None:
    assert stage.call(encode(*[Step(message(NOOP, b""))] * 4095, UP)).returncode == 0
    assert stage.container.is_up()


def test_last_message_need_not_be_padded_in_its_length(stage: Stage) -> None:
    assert stage.call(encode(Step(message(NOOP, b"123")[:-1]), UP)).returncode == 0
    assert stage.container.is_up()


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_closed_standard_descriptors(stage: Stage, closed: int) -> None:
    """No socket may take the place of stderr, or the line of an error goes to the kernel as a message."""
    plan = stage.write(encode(UP) if closed == 2 else encode(UP, FAILS))
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *stage.command(plan)]
    state = json.dumps({"pid": stage.container.pid})
    done = subprocess.run(command, input=state, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    if closed != 2:
        assert LINE.fullmatch(done.stderr)
    assert stage.container.is_untouched()


@pytest.mark.parametrize(
    "environment", [{}, {"GLIBC_TUNABLES": "x", "LD_PRELOAD": "/absent", "PATH": "", "LANG": "de"}]
)
def test_environment_is_ignored(stage: Stage, environment: dict[str, str]) -> None:
    plan = stage.write(WHOLE)
    command = ["nsenter", f"--net=/proc/{stage.host.pid}/ns/net", "env", "-i"]
    if b"/ld-" in stage.hook.read_bytes():
        environment = {key: value for key, value in environment.items() if key != "LD_PRELOAD"}  # sanitized: dynamic
    command += [f"{key}={value}" for key, value in environment.items()]
    state = json.dumps({"pid": stage.container.pid})
    done = subprocess.run([*command, stage.hook, plan], input=state, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_set_user_id_hook_refuses(stage: Stage, tmp_path: Path) -> None:
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip(f"{tmp_path} is mounted nosuid: set-id is not honoured, the refusal is not tested")
    if b"/ld-" in stage.hook.read_bytes():
        pytest.skip("the sanitizers do not start in a set-id process")
    copy = tmp_path / "hook"
    shutil.copy(stage.hook, copy)
    os.chown(copy, 1, 1)
    copy.chmod(0o4755)
    refused(subprocess.run([copy, stage.write(WHOLE)], capture_output=True, text=True, timeout=30), "set-id")


def test_without_capabilities_it_says_so(stage: Stage) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", str(stage.hook), str(stage.write(WHOLE))]
    done = subprocess.run(command, capture_output=True, text=True, input="{}", timeout=30)
    refused(done, "network: capabilities: ")


# --- what it could still do ----------------------------------------------------------------------------------------

PROBE_H = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/netlink.h>
static int probe(int fd, const char *path, char **argv) {
    const char *other = argv[1], *again = argv[2] ? argv[3] : other;
    char byte = 0;
    struct iovec { void *base; size_t length; } vector = {&byte, 1};
    struct sockaddr_nl to = {AF_NETLINK, 0, 1, 0};
    struct { void *a, *b, *c, *d; long e[4]; } head = {0};
    char *const none[] = {NULL};
    switch (atoi(getenv("PROBE"))) {
    case 0: break; /* nothing: control */
    case 1: return 1; /* wait for answers */
    case 2: (void)!write(2, "written\n", 8); break;
    case 3: syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY); break;
    case 4: syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); break;
    case 5: syscall(SYS_execve, "/bin/true", none, none); break;
    case 6: syscall(SYS_clone, 17, 0, 0, 0, 0); break;
    case 7: (void)!write(1, "x", 1); break;
    case 8: (void)!write(fd, "x", 1); break;
    case 9: syscall(SYS_sendto, fd, &byte, 1, 0, &to, sizeof to); break;
    case 10: syscall(SYS_sendto, fd, &byte, 1, 0, 1UL << 32, sizeof to); break;
    case 11: syscall(SYS_sendmsg, fd, &head, 0); break;
    case 12: syscall(SYS_recvmsg, fd, &head, 0); break;
    case 13: syscall(SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); break;
    case 14: syscall(SYS_setns, fd, 0); break;
    case 15: syscall(SYS_close, fd); break;
    case 16: syscall(SYS_prctl, PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); break;
    case 17: syscall(SYS_ptrace, 16, 1, 0, 0); break;
    case 18: syscall(SYS_writev, 2, &vector, 1); break;
    case 19: syscall(SYS_getpid); break;
    case 20: syscall(SYS_exit, 0); break;
    case 21: syscall(SYS_kill, 1, 0); break;
    case 22: syscall(0xFFFFFFFFUL); break;
    case 30: syscall(SYS_unlinkat, -100, path, 0); break; /* control, and what do must not */
    case 31: syscall(SYS_unlinkat, -100, other, 0); break;
    case 32: syscall(SYS_unlinkat, -100, again, 0); break; /* the same words elsewhere, where they could be changed */
    case 33: syscall(SYS_unlinkat, -100, path, 0x200); break; /* AT_REMOVEDIR */
    case 34: syscall(SYS_unlinkat, fd, path, 0); break;
    case 35: syscall(SYS_unlinkat, -100, path + (1L << 32), 0); break;
    case 36: syscall(SYS_unlinkat, -100, path + 1, 0); break;
    case 37: ((volatile char *)path)[0] = 'x'; break;
    case 38: syscall(SYS_mprotect, path, 4096, PROT_READ | PROT_WRITE); break;
    case 39: syscall(SYS_renameat2, -100, path, -100, other, 0); break;
#ifdef __x86_64__
    case 23: syscall(0x40000000 | SYS_sendto, fd, &byte, 1, 0, 0, 0); break; /* x32 */
    case 24: __asm__ volatile("int $0x80" : : "a"(45), "b"(0)); break; /* i386's brk has the number of recvfrom */
#endif
    }
    return 0;
}
"""
HOLD = """if (probe(sockets[over][ROUTE], lease, argv) && over) {
    answer(sockets[HOST][ROUTE], 0);
} else if (atoi(getenv("PROBE")) == 1) {
    send_all(sockets[CONTAINER][ROUTE], bytes_of(steps[0], DO), steps[0]->length[DO]);
    int got = answer(sockets[CONTAINER][ROUTE], 0);
    got = got < 0 ? got : answer(sockets[CONTAINER][ROUTE], 0);
    give_back(0, got < 0 ? got : -EISNAM);
}"""
# `path` is what the filter has of the lease. In the first call it is NULL, and no number of unlinkat may pass.
BASIC = [number for number in range(3, 25) if number < 23 or os.uname().machine == "x86_64"]


@pytest.fixture(scope="module")
def prober(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("probe")
    (base / "probe.h").write_text(PROBE_H)
    extra = ["-include", str(base / "probe.h"), "-DPROBE=" + HOLD.replace("\n", " ")]
    return build.build_nethook(base / "agentshim-net", extra)


@pytest.fixture
def probed(prober: Path, tmp_path: Path) -> Iterator[Stage]:
    with set_stage(prober, tmp_path) as made:
        yield made


def probe(stage: Stage, number: int) -> subprocess.CompletedProcess[str]:
    return stage.call(encode(UP), env={"PROBE": str(number), "PATH": os.environ["PATH"]})


def probe_undo(stage: Stage, number: int, *lease: Path) -> subprocess.CompletedProcess[str]:
    plan = encode(UP._replace(room=HOST))
    return stage.undo(plan, *lease, env={"PROBE": str(number), "PATH": os.environ["PATH"]})


def test_what_the_filter_allows(probed: Stage) -> None:
    assert probe(probed, 0).returncode == 0
    done = probe(probed, 2)
    assert (done.returncode, done.stderr) == (0, "written\n")


def test_what_the_filter_allows_at_the_end(probed: Stage) -> None:
    for number in (0, 30):  # 30: it may unlink the lease, and then finds it gone
        lease = probed.lease()
        assert probe_undo(probed, number, lease).returncode == 0
        assert not lease.exists()
    done = probe_undo(probed, 2, probed.lease())
    assert (done.returncode, done.stderr) == (0, "written\n")


def deaths(number: int) -> set[int]:
    """24: a kernel without IA32_EMULATION; 37: memory that cannot be written."""
    return {24: {-signal.SIGSYS, -signal.SIGSEGV}, 37: {-signal.SIGSEGV}}.get(number, {-signal.SIGSYS})


@pytest.mark.parametrize("number", [*BASIC, *range(30, 35), 38, 39])
def test_any_other_call_kills_it(probed: Stage, number: int) -> None:
    assert probe(probed, number).returncode in deaths(number)
    assert probed.container.is_untouched() and (probed.scratch / "plan").exists()


@pytest.mark.parametrize("number", [*BASIC, *range(31, 40)])
def test_any_other_call_kills_it_at_the_end(probed: Stage, number: int) -> None:
    lease = probed.lease()
    assert probe_undo(probed, number, lease).returncode in deaths(number)
    assert lease.exists() and (probed.scratch / "plan").exists()


@pytest.mark.parametrize("number", range(30, 35))
def test_without_a_lease_nothing_is_unlinked(probed: Stage, number: int) -> None:
    assert probe_undo(probed, number).returncode in deaths(number)
    assert (probed.scratch / "plan").exists()


@contextlib.contextmanager
def held(stage: Stage, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The hook while it waits for an answer that nobody owes, 2 s long."""
    command = stage.command(stage.write(encode(UP._replace(room=HOST if words else CONTAINER))), *words)
    environment = {"PROBE": "1", "PATH": os.environ["PATH"]}
    with (
        open("/dev/null") as inherited,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=[inherited.fileno()],
        ) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(json.dumps({"pid": stage.container.pid}))
        process.stdin.close()
        process.stdin = None
        deadline = time.monotonic() + 10
        while "Seccomp:\t2" not in Path(f"/proc/{process.pid}/status").read_text() or not (
            words or stage.container.is_up()
        ):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        yield process


@pytest.mark.parametrize("call", ["first", "second", "second with a lease"])
def test_it_holds_net_admin_and_nothing_else(probed: Stage, call: str) -> None:
    words = {"first": (), "second": ("undo",), "second with a lease": ("undo", probed.lease())}[call]
    with held(probed, *words) as process:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        told = dict(line.split(":\t", 1) for line in lines)
        fds = {int(fd): os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
        nets = [os.readlink(f"/proc/{pid}/ns/net") for pid in (process.pid, probed.container.pid, probed.host.pid)]
    net_admin = f"{1 << 12:016x}"
    assert (told["CapEff"], told["CapPrm"]) == (net_admin, net_admin)
    assert {told["CapInh"], told["CapBnd"], told["CapAmb"]} == {f"{0:016x}"}
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")
    assert fds.pop(2).startswith("pipe:")
    if call == "first":
        assert nets[0] == nets[1] == fds.pop(8)  # by which messages name it
    else:
        assert nets[0] == nets[2]
        (pipe,) = (fd for fd, name in fds.items() if name.startswith("pipe:"))  # its stand-in waits at the other end
        del fds[pipe]
    if call == "second with a lease":
        assert str(probed.scratch / "10.0.0.2") in fds.values()
        fds = {fd: name for fd, name in fds.items() if not name.startswith("/")}
    assert len(fds) == 1 and next(iter(fds.values())).startswith("socket:")


@pytest.mark.parametrize("call", [0, 1])
def test_it_begins_with_what_its_call_needs(hook: Path, stage: Stage, call: int) -> None:
    """At the container's end it enters no namespace, so it never has what setns takes."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: WHAT THE HOOK BEGINS WITH IS NOT TESTED")
    if b"/ld-" in hook.read_bytes():
        pytest.skip("the sanitizers do not run under strace")
    trace = stage.scratch / "trace"
    command = stage.command(stage.write(encode(UP)), *["undo"] * call)
    state = json.dumps({"pid": stage.container.pid})
    words = ["strace", "-f", "-o", str(trace), "-e", "trace=capset,setns,seccomp,prctl"]
    done = subprocess.run([*command[:2], *words, *command[2:]], input=state, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done
    told = trace.read_text()
    sets = re.findall(r"effective=([A-Z_|0-9x<]+)", told)
    first = "1<<CAP_NET_ADMIN" if call else "1<<CAP_NET_ADMIN|1<<CAP_SYS_PTRACE|1<<CAP_SYS_ADMIN"
    assert sets == [first, "1<<CAP_NET_ADMIN"]
    assert ("setns(" in told) == (not call)


def test_answer_that_does_not_come(probed: Stage) -> None:
    start = time.monotonic()
    refused(probe(probed, 1), "step 1", "no answer in 2 seconds")
    assert 1.5 < time.monotonic() - start < 10


def test_answer_of_another_process_is_not_taken_for_the_kernels(probed: Stage) -> None:
    """Whoever is root in that namespace already could acknowledge for a kernel that refused."""
    forged = struct.pack("=IHHIIiIHHII", 36, 2, 0, 7, 0, 0, 28, NEWLINK, 5, 7, 0)
    with held(probed) as process:
        script = f"""import socket
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.sendto(bytes.fromhex("{forged.hex()}"), ({process.pid}, 0))"""
        net = f"--net=/proc/{probed.container.pid}/ns/net"
        subprocess.run(["nsenter", net, "/usr/bin/env", "python3", "-c", script], check=True)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1 and "an answer that is none" in stderr


# --- as a real hook ------------------------------------------------------------------------------------------------


def bundle(base: Path, hook: Path, plan: bytes, more: dict[str, Any]) -> Path:
    """A bundle of a static busybox whose only hook is ours."""
    busybox = shutil.which("busybox")
    if busybox is None or b"/ld-" in Path(busybox).read_bytes():
        pytest.skip("no static busybox is installed: NO REAL CONTAINER IS TRIED")
    for point in ("bin", "dev", "proc"):
        (base / "rootfs" / point).mkdir(parents=True)
    shutil.copy(busybox, base / "rootfs" / "bin" / "busybox")
    path = base / "plan"
    path.write_bytes(plan)
    path.chmod(0o600)
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/busybox", "ip", "-4", "addr"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "hooks": {"createRuntime": [{"path": str(hook), "args": ["agentshim-net", str(path)]}]},
        "linux": {**more, "namespaces": namespaces + more.get("namespaces", [])},
    }
    (base / "config.json").write_text(json.dumps(spec))
    return base


MAP = [{"containerID": 0, "hostID": 100000, "size": 65536}]
USER = {"namespaces": [{"type": "user"}], "uidMappings": MAP, "gidMappings": MAP}


def live(delegate: str, base: Path, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
    """One call of the delegate. Its output goes to a file: a container that was created would hold a pipe open."""
    path = shutil.which(delegate)
    if path is None:
        pytest.skip(f"{delegate} is not installed: THE HOOK IS NOT TRIED UNDER IT")
    with open(base / "out", "w+") as out, open(base / "err", "w+") as err:
        done = subprocess.run(
            [path, "--root", str(base / "state"), verb, *words, f"nethook-{os.getpid()}"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=base,
            timeout=60,
        )
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), err.read())


@pytest.mark.parametrize("delegate", ["runc", "crun"])
@pytest.mark.parametrize("user", ["host's users", "own users"])
def test_real_container_sees_what_the_hook_did(delegate: str, hook: Path, tmp_path: Path, user: str) -> None:
    """Also where the namespace belongs to a user namespace, in which the hook is nobody but its owner's better."""
    base = bundle(tmp_path, hook, WHOLE, USER if user == "own users" else {})
    if user == "own users":
        os.chown(base / "rootfs", 100000, 100000)
        for parent in (base, *base.parents[:3]):  # pytest's own, else 0700
            parent.chmod(parent.stat().st_mode | 0o011)
    try:
        created = live(delegate, base, "create", "--bundle", str(base))
        assert created.returncode == 0, created
        pid = json.loads(live(delegate, base, "state").stdout)["pid"]
        listed = subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "nft", "list", "tables"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert listed.stdout == "table inet agentshim\n"
    finally:
        live(delegate, base, "delete", "--force")
    ran = live(delegate, base, "run", "--bundle", str(base))
    live(delegate, base, "delete", "--force")
    assert ran.returncode == 0, ran
    assert "127.0.0.5/32" in ran.stdout and "UP" in ran.stdout


@pytest.mark.parametrize("delegate", ["runc", "crun"])
def test_real_container_is_not_started_when_the_hook_fails(delegate: str, hook: Path, tmp_path: Path) -> None:
    base = bundle(tmp_path, hook, encode(UP, FAILS), {})
    try:
        ran = live(delegate, base, "run", "--bundle", str(base))
    finally:
        live(delegate, base, "delete", "--force")
    assert ran.returncode != 0 and "127.0.0" not in ran.stdout
    if delegate == "runc":  # it repeats what a hook wrote
        assert "network: step 2: asked addresses and links" in ran.stderr, ran


def test_real_hook_is_static(tmp_path: Path) -> None:
    """No loader and no LD_PRELOAD between root and the plan."""
    out = build.build_nethook(tmp_path / "agentshim-net")
    assert b"/ld-" not in out.read_bytes()
