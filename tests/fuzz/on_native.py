"""launcher and hook: the C programs, called as a library, against Python's reading of the same bytes.

Belongs here: what is compared. Next door: libfuzzer.py runs the same parsers under the sanitizers.
"""

from __future__ import annotations

import os
import tomllib

from hooks import plan as net
from shim import argv
from shim.errors import Invalid
from tests.fuzz import grow
from tests.fuzz.native import native
from tests.fuzz.on_argv import GLOBAL_FLAGS, GLOBAL_VALUES, go_flags, words_of
from tests.fuzz.on_wire import strict
from tests.fuzz.properties import Over, demand, only, target

PASSED = ("state", "kill", "list", "ps", "pause", "resume", "events", "features", "spec", "start", "delete")


@target
def target_launcher(data: bytes) -> None:
    if data[:1] == b"\2":
        return _configured(data[1:])
    words = [word for word in words_of(data) if "\0" not in word]
    verb, passes = native().parsed([os.fsencode(word) for word in words])
    model = go_flags(words, GLOBAL_FLAGS, GLOBAL_VALUES)
    if not passes:
        return
    demand(verb is not None and os.fsdecode(verb) in PASSED, "passes on a verb that is to be decided", words)
    assert verb is not None
    demand(model is None or model[1][:1] == [os.fsdecode(verb)], "runc takes another verb", words, verb, model)
    try:
        call = argv.parse(words)
    except Invalid:
        return  # we are stricter; the delegate gets it as the engine wrote it
    demand(call.verb == os.fsdecode(verb), "Python takes another verb", words, call.verb)
    demand(call.rootless is None, "passes on authority", words)


_LINES = r"""
delegate = "/usr/bin/crun"
delegate="/x"
delegate = '/x'
"delegate" = "/y"
[t]
delegates = ["/usr/bin/crun"]
delegates = ["/x", "/y"]
delegates = []
delegates = ["/x",
]
a = 1
delegate = "/x"
mode = "enforce"
# c
a.b = 1
x
delegate = "/x" "/y"
delegate = /x
names = ["a", "b"]
a = [
a = true
delegates = ['/x']
delegates = ["/x"] # c
a = """
"""
delegate.x = "/x"
[[t]]
a = {}
a = [[1]]
"delegates" = ["/q"]
'delegates' = ['/q']
delegate = ""
a = "b
= 1
a = 2020-01-01
"""
CONF_LINES = [
    *_LINES.strip().split("\n"),
    *(
        'delegate = "/a\\u0062"',
        '"\\u0064elegate" = "/z"',
        "",
        'a = """',
        '"""',
        '  delegate  =  "/x"  # c',
        "\r",
        "\\",
        'a = "\\""',
    ),
]


def _configured(data: bytes) -> None:
    r = grow.Reader(data)
    lines: list[str] = []
    while r.more and len(lines) < 12:
        lines.append(r.pick(CONF_LINES) if r.often() else r.text())
    text = "\n".join(lines).encode("utf-8", "replace").replace(b"\0", b"")
    decided, delegate = native().configured(text)
    if not decided:
        return  # Python decides
    try:
        told = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return  # what comes behind is broken: the verbs that need no decision go on
    named, among = told.get("delegate"), told.get("delegates") or []
    demand(
        (os.fsdecode(delegate) if delegate is not None else None) == named, "another delegate", text, delegate, named
    )
    demand(named is None or not among or named in among, "a delegate that is not listed", text)


@target
def target_hook(data: bytes) -> None:
    if data[:1] == b"\2":
        return _state(data[1:])
    plan_bytes = data if data[:1] != b"\1" else plan_of(data[1:])
    theirs = native().plan_is_whole(plan_bytes)
    try:
        with only(Invalid):
            steps = net.decode(plan_bytes)
    except Over:
        demand(not theirs, "the hook would run what Python refuses", plan_bytes)
        return
    demand(theirs, "the hook refuses what Python takes", plan_bytes)
    demand(net.encode(steps) == plan_bytes, "no round trip", plan_bytes)


def plan_of(data: bytes) -> bytes:
    """A plan file made by our own encoder, a few of its words then changed."""
    r = grow.Reader(data)
    steps = []
    for _ in range(1 + r.below(4)):
        family = r.pick((0, 12))
        parts = [_message(r, family) for _ in range(1 + r.below(3))]
        undo = b"".join(_message(r, family) for _ in range(r.below(2)))
        acks = sum(message[6] & 4 != 0 for message in parts)
        if family and parts[0][4] == 16 and r.often():
            parts.append(_message(r, family, 17))
            acks += parts[-1][6] & 4 != 0
        do = b"".join(parts)
        cut = -parts[-1][0] & 3 if r.below(2) else 0  # the last message may end without its padding
        steps.append(net.Step(r.below(2), family, do[: len(do) - cut], undo, acks, ""))
    whole = bytearray(net.encode(steps))
    for _ in range(r.below(3)):
        whole[-1 - r.below(8) if r.below(2) else r.below(len(whole))] = r.byte()
    return bytes(whole[: len(whole) - r.below(6)] if r.below(4) == 3 else whole)


def _message(r: grow.Reader, family: int, fixed: int = 0) -> bytes:
    kind: int = fixed or r.pick((16, 17, 0x0A00, 0x0A06, 24, 2) if family else (16, 20, 24))
    flags: int = r.pick((5,) * 16 + (1,) * 6 + (4, 0))
    body = bytes(r.below(5))
    length = (16 + len(body)).to_bytes(4, "little")
    return length + kind.to_bytes(2, "little") + flags.to_bytes(2, "little") + bytes(8) + body + bytes(-len(body) & 3)


STATE_PIECES = [
    '{"pid":7', '"pid"', ':', '12', ',', '{', '}', '[', ']',
    '"a"', '"p\\u0069d":9', '0', '01', '-1', '1e1', 'true', 'null', ' ',
    '\t', '\n', '"\\"', '"x', '99999999', '"pid":7}', '{"pid":1}', '"ociVersion":"1.0.2"', '"annotations":{"pid":3}',
]  # fmt: skip


def _state(data: bytes) -> None:
    r = grow.Reader(data)
    text = "".join(r.pick(STATE_PIECES) for _ in range(1 + r.below(12))) if r.often() else r.text()
    raw = text.encode("utf-8", "replace").replace(b"\0", b"")
    pid = native().pid_of(raw)
    try:
        told = strict(raw)
    except (ValueError, RecursionError):
        return  # nothing of a state that runc would never write is used but the number
    if isinstance(told, dict) and pid > 0:
        demand(told.get("pid") == pid, "another process", raw, pid)
    demand(pid < 0 or isinstance(told, dict), "a process of what is no object", raw, pid)
