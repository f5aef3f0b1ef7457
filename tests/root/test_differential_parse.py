"""The input edge against the real runc and crun: what we accept, they read as we do.

Two claims. Of config.json: where we accept the bytes and the delegate runs them, it runs what we would write in their
place. Of argv: where we accept the words and runc does, it uses the bundle, the root and the verb that we read; and our
canonical words say the same to it. What we refuse may be anything.

Learned with runc 1.1.5 (Go 1.19) and crun 1.8.1 (yajl): of `"uid":1000,"uid":7` runc makes 7 and crun 1000; `"UID"`,
and `"proceſſ"` for process, count for runc alone; a value of the wrong type is an error to runc and absent to crun, so
`"uid":"1000"` is root; `-0` is an error to runc in an unsigned field and 0 to crun; crun skips comments and form feeds,
and ends keys at an escaped U+0000; runc reads no further than the first value; null in an array is "" to both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim import argv, spec, wire
from shim.errors import Invalid

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: containers cannot be started")

BASE = (
    '{"ociVersion":"1.0.2","process":{"user":{"uid":1000,"gid":1001},"args":["/bin/sh","-c","id -u; id -g; echo $X;'
    ' echo h:$(hostname); grep NoNewPrivs /proc/self/status; ulimit -c"],"env":["X=1","PATH=/bin"],"cwd":"/",'
    '"noNewPrivileges":true,"rlimits":[{"type":"RLIMIT_CORE","soft":0,"hard":0}]@P},"root":{"path":"rootfs",'
    '"readonly":true},"hostname":"h"@T,"mounts":[{"destination":"/proc","type":"proc","source":"proc"}],'
    '"linux":{"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"}]@L}}'
)
APPLETS = ("sh", "id", "hostname", "grep", "cat")


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Runtime:
    """A delegate with a bundle of its own; `run` gives the exit code and the output of a container."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.bundle = directory / "bundle"
        self.state = directory / "state"
        self.count = 0
        busybox = shutil.which("busybox") or ""
        bin_ = self.bundle / "rootfs" / "bin"
        bin_.mkdir(parents=True)
        for point in ("proc", "dev", "sys"):
            (self.bundle / "rootfs" / point).mkdir()
        shutil.copy(busybox, bin_ / "busybox")
        for applet in APPLETS:
            (bin_ / applet).symlink_to("busybox")

    def run(self, config: bytes) -> Result:
        (self.bundle / "config.json").write_bytes(config)
        self.count += 1
        words = [self.name, "--root", str(self.state), "run", "--bundle", str(self.bundle)]
        done = subprocess.run(
            [*words, f"edge-{self.name}-{os.getpid()}-{self.count}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        out, err = (stream.decode(errors="backslashreplace") for stream in (done.stdout, done.stderr))
        return Result(done.returncode, out, err)


@pytest.fixture(scope="module", params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    for needed in (request.param, "busybox"):
        if shutil.which(needed) is None:
            pytest.skip(f"NO {needed} HERE")
    made = Runtime(request.param, tmp_path_factory.mktemp(request.param))
    first = made.run(text().encode())
    if first != Result(0, "1000\n1001\n1\nh:h\nNoNewPrivs:\t1\n0\n", ""):
        pytest.skip(f"{request.param} RUNS NO PLAIN CONTAINER HERE: {first.err[-300:]}")
    return made


def text(process: str = "", top: str = "", linux: str = "") -> str:
    """BASE with more members in three places."""
    return BASE.replace("@P", process).replace("@T", top).replace("@L", linux)


def instead(old: str, new: str) -> str:
    whole = text()
    assert whole.count(old) == 1, old
    return whole.replace(old, new)


def ours(config: bytes) -> bytes | None:
    """What we would write in place of `config`; None where we refuse it."""
    try:
        new, _ = spec.check(wire.loads(config, "bundle", "config.json"), "drop")
    except Invalid:
        return None
    return wire.dumps(new)


def agree(runtime: Runtime, config: bytes) -> bool:
    """Whether we accept `config`. Fails where the delegate would run it as something else than we do."""
    written = ours(config)
    if written is None:
        return False
    raw = runtime.run(config)
    if raw.code == 0:
        assert runtime.run(written) == raw, (config, written)
    return True


NUMBERS = [
    *("1e3", "1E3", "1000.0", "1000.", "1.5", "1e400", "-0", "-1", "-0.0", "01000", "+1000", "0x3e8", "0b1", "1_000"),
    *(
        "4294967296",
        "4294968296",
        "18446744073709551616",
        "9" * 400,
        "NaN",
        "Infinity",
        "-Infinity",
        "true",
        "[]",
        "{}",
    ),
    *('"1000"', '" 1000"', '"1e3"', "[1000]", '{"":1000}'),
]
REFUSED = {
    **{f"uid {number}": instead('"uid":1000', f'"uid":{number}').encode() for number in NUMBERS},
    **{
        f"noNewPrivileges {value}": instead('Privileges":true', f'Privileges":{value}').encode()
        for value in ("1", "0", '"true"', '"yes"', "{}", "[]", "[true]", "TRUE", "1.0")
    },
    **{
        f"soft limit {value}": instead('"soft":0', f'"soft":{value}').encode()
        for value in ("-1", "18446744073709551616", "0.0", "0e0", '"0"', "-0")
    },
    "a key twice": instead('"uid":1000', '"uid":1000,"uid":7').encode(),
    "a key twice, escaped": instead('"uid":1000', r'"uid":1000,"\u0075id":7').encode(),
    "a key in capitals": instead('"uid":1000', '"uid":1000,"UID":7').encode(),
    "only a key in capitals": instead('"uid":1000', '"UID":1000').encode(),
    "PROCESS": text(top=',"PROCESS":{"args":["/bin/id"]}').encode(),
    "proceſſ": text(top=',"proceſſ":{"args":["/bin/id"]}').encode(),
    "proceſſ, escaped": text(top=r',"proce\u017f\u017f":{"args":["/bin/id"]}').encode(),
    "process twice": text(top=',"process":{"args":["/bin/id"],"cwd":"/"}').encode(),
    "linux null at the end": text(top=',"linux":null').encode(),
    "a namespace's TYPE": instead('{"type":"pid"}', '{"TYPE":"pid"}').encode(),
    "U+0000 in a key": instead('"uid"', r'"uid\u0000"').encode(),
    "U+0000 in a value": instead('"X=1"', r'"X=a\u0000b"').encode(),
    "half a pair": instead('"X=1"', r'"X=\ud800"').encode(),
    "half a pair, the other": instead('"X=1"', r'"X=\uDC00"').encode(),
    "not UTF-8": text().encode().replace(b"X=1", b"X=\xff"),
    "surrogates in UTF-8": text().encode().replace(b"X=1", b"X=\xed\xa0\xbd\xed\xb8\x80"),
    "overlong": text().encode().replace(b"X=1", b"X=\xc0\xaf"),
    "a tab in a string": instead('"X=1"', '"X=a\tb"').encode(),
    "a strange escape": instead('"X=1"', r'"X=\x41"').encode(),
    "a second value": (text() + text()).encode(),
    "more text": (text() + "x").encode(),
    "a comment before": ("/* c */" + text()).encode(),
    "a comment after": (text() + "// c").encode(),
    "a comment within": instead('"uid":1000', '/* "uid":7, */ "uid":1000').encode(),
    "a form feed": ("\f" + text()).encode(),
    "a no-break space": ("\u00a0" + text()).encode(),
    "a byte order mark": b"\xef\xbb\xbf" + text().encode(),
    "UTF-16": text().encode("utf-16"),
    "a trailing comma": instead('"PATH=/bin"]', '"PATH=/bin",]').encode(),
    "null among args": instead('"/bin/sh","-c"', '"/bin/sh",null,"-c"').encode(),
    "null among namespaces": instead('{"type":"pid"}', 'null,{"type":"pid"}').encode(),
    "null for an annotation": text(top=',"annotations":{"a":null}').encode(),
    "a number for an annotation": text(top=',"annotations":{"a":1}').encode(),
    "a number for env": instead('"X=1"', "1").encode(),
    "a number for hostname": instead('"hostname":"h"', '"hostname":5').encode(),
    "args no array": instead('"env":["X=1","PATH=/bin"]', '"env":"X=1"').encode(),
    "process an array": text().replace('"process":{', '"process":[{').replace('}]},"root"', '}]}],"root"').encode(),
    "all in an array": f"[{text()}]".encode(),
    "null alone": b"null",
    "empty": b"",
    "truncated": text()[:-1].encode(),
    "200 deep": text(top=',"x":' + "[" * 200 + "]" * 200).encode(),
    "100000 deep": text(top=',"x":' + "[" * 100000 + "]" * 100000).encode(),
    "another platform": text(top=',"windows":{"layerFolders":["x"]}').encode(),
    "version 2": instead("1.0.2", "2.0.0").encode(),
    "version 0.5": instead("1.0.2", "0.5.0-dev").encode(),
    "no version": instead('"ociVersion":"1.0.2",', "").encode(),
    "no root": instead('"root":{"path":"rootfs","readonly":true},', "").encode(),
    "no process": b'{"ociVersion":"1.0.2","root":{"path":"rootfs"},"mounts":[],"linux":{}}',
}
ACCEPTED = {
    "plain": text().encode(),
    "white space": b" \t\r\n"
    + json.dumps(json.loads(text()), indent="\t", separators=(" ,", " :\r\n")).encode()
    + b"\n ",
    "an escaped key": instead('"uid"', r'"\u0075\u0069d"').encode(),
    "an escaped value": instead('"X=1"', r'"X=\u0041\/\"\\\b"').encode(),
    "a pair": instead('"X=1"', r'"X=\ud83d\ude00"').encode(),
    "an emoji": instead('"X=1"', '"X=😀\u2028\x7f"').encode(),
    "escapes of escapes": instead('"X=1"', r'"X=\\u0000\\ud800"').encode(),
    "nought": instead('"uid":1000', '"uid":0').encode(),
    "the greatest id": instead('"uid":1000', '"uid":2147483647').encode(),
    "the greatest limit": instead('"soft":0,"hard":0', '"soft":0,"hard":18446744073709551615').encode(),
    "null for an id": instead('"uid":1000', '"uid":null').encode(),
    "null for a flag": instead('Privileges":true', 'Privileges":null').encode(),
    "null for a list": instead('"env":["X=1","PATH=/bin"]', '"env":null').encode(),
    "null for an object": text(top=',"annotations":null,"hooks":null,"windows":null', linux=',"seccomp":null').encode(),
    "unknown keys": text(',"foo":{"x":[1.5]}', ',"foo":1,"":2', ',"foo":null').encode(),
    "annotations in any case": text(top=',"annotations":{"Process":"x","process":"y","":"z"}').encode(),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_read_alike(runtime: Runtime, name: str) -> None:
    assert agree(runtime, ACCEPTED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_here(name: str) -> None:
    assert ours(REFUSED[name]) is None


def test_a_refusal_has_a_reason(runtime: Runtime) -> None:
    """Each delegate takes some of what we refuse, and makes something else of it than the other or than is written."""
    plain = runtime.run(text().encode())
    taken = {name for name in REFUSED if (got := runtime.run(REFUSED[name])).code == 0 and got != plain}
    assert taken, f"{runtime.name} reads all of JSON strictly: is the table still worth its length?"


def edits() -> st.SearchStrategy[Callable[[str], str]]:
    """One change of a config's text: values and keys respelled, repeated or folded keys, nulls, noise."""
    keys = st.sampled_from(["uid", "gid", "noNewPrivileges", "soft", "hostname", "env", "user", "readonly", "process"])
    values = st.sampled_from(
        ["null", "7", '"7"', "true", "false", "7.0", "-0", "[]", "{}", '["X=7"]', '{"uid":7}', '"g"']
    )
    command = text().index('"args"'), text().index('"env"')  # what runs in the container stays as it is
    places = st.integers(0, command[0]) | st.integers(command[1], len(text()))
    noise = st.sampled_from(["\f", "/**/", " ", "\n", "\0", "\ufeff", ",", '"', "\\u0000", "0", "é", "null", "{}"])
    return st.one_of(
        st.tuples(keys, values, st.sampled_from(SPELLINGS)).map(lambda t: _member(*t)),
        st.tuples(keys, values).map(lambda t: _value(*t)),
        st.tuples(places, noise).map(lambda t: lambda whole: whole[: t[0]] + t[1] + whole[t[0] :]),
        st.tuples(places, st.integers(1, 3)).map(lambda t: lambda whole: whole[: t[0]] + whole[t[0] + t[1] :]),
    )


def _long_s(key: str) -> str:
    return key.replace("s", "ſ").replace("k", "\u212a")


def _escaped(key: str) -> str:
    return f"\\u{ord(key[0]):04x}" + key[1:]


SPELLINGS: list[Callable[[str], str]] = [str, str.upper, _long_s, _escaped]


def _member(key: str, value: str, spell: Callable[[str], str]) -> Callable[[str], str]:
    """Put another member with this key, spelled otherwise, before the one that is there."""
    return lambda whole: whole.replace(f'"{key}":', f'"{spell(key)}":{value},"{key}":', 1)


def _value(key: str, value: str) -> Callable[[str], str]:
    """Replace the start of a member's value, when it is a simple one all of it."""

    def edit(whole: str) -> str:
        before, found, after = whole.partition(f'"{key}":')
        old = after[: min((after.find(end) % (len(after) + 1) for end in ",}"), default=0)]
        return before + found + value + after[len(old) :] if found else whole

    return edit


@settings(max_examples=60, deadline=None)
@given(st.lists(edits(), min_size=1, max_size=2))
def test_random_edits_are_read_alike_or_refused(runtime: Runtime, changes: list[Callable[[str], str]]) -> None:
    whole = text()
    for change in changes:
        whole = change(whole)
    agree(runtime, whole.encode())


class Places(NamedTuple):
    """Bundles whose config.json is no JSON, roots whose container has no state: the error names the letter in them."""

    directory: Path

    def asked(self, words: list[str]) -> str:
        """The letter of the bundle (create) or of the root (state) that runc uses; "" where it refuses the words."""
        done = subprocess.run(
            ["runc", *words],
            cwd=self.directory / "z",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode != 0 or "USAGE" in done.stdout or "version" in done.stdout, (words, done)
        _, found, letter = done.stderr.partition("invalid character '")
        return letter[0] if found else ""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    if shutil.which("runc") is None:
        pytest.skip("NO runc HERE")
    directory = tmp_path_factory.mktemp("places")
    for letter in "xyz":
        (directory / letter / "ID").mkdir(parents=True)
        (directory / letter / "config.json").write_text(letter)
        (directory / letter / "ID" / "state.json").write_text(letter)
    return Places(directory)


BUNDLES = [
    *("create -b @x ID", "create --bundle=@x ID", "create -bundle @x ID", "create --b @x ID", "create ID --bundle @x"),
    *(
        "create --bundle @y -bundle @x ID",
        "create ID",
        "create --bundle= ID",
        "create -b @x -- ID",
        "-- create -b @x ID",
    ),
    *("run -d -b @x ID", "run -d=false -b=@x ID", "run ID -b @x -d", "run ID -d -b @x", "create --bundle -d ID"),
    *("create --no-pivot ID -b @x", "create -b @x --bundle @x ID", "create -b@x ID", "create ---bundle @x ID"),
    *("create -b @x ID y", "create -- ID -b @x", "create -b @x", "create --bundle", "create -b @x ID --help"),
    *("create --preserve-fds 1 -b @x ID", "create --preserve-fds 010 -b @x ID", "create --preserve-fds=x -b @x ID"),
    *("--roo @y create -b @x ID", "create --bundl @x ID", "create --root @y -b @x ID", "--debug=0 create -b @x ID"),
    *("--systemd-cgroup=false create -b @x ID", "--log-format yaml create -b @x ID", "-v create -b @x ID"),
    *("restore -no-subreaper --detach --bundle @x --image-path @x ID", "run -keep -b @x ID", "run --no-pivot=maybe ID"),
]
ROOTS = [
    *(
        "--root @x state ID",
        "--root=@x state ID",
        "-root @x state ID",
        "-root=@x state ID",
        "--root @y --root @x state ID",
    ),
    *("--root @x -- state ID", "--root @x state -- ID", "--root @x --log=/dev/null state ID", "state --root @x ID"),
    *(
        "--root @x --debug=true state ID",
        "--ROOT @x state ID",
        "--root state state ID",
        "--root @x state",
        "--root @x st ID",
    ),
]


@pytest.mark.parametrize("words", [*BUNDLES, *ROOTS])
def test_words_mean_to_us_what_they_mean_to_runc(places: Places, words: str) -> None:
    same_words(places, words.split())


def same_words(places: Places, words: list[str]) -> None:
    words = [word.replace("@", f"{places.directory}/") for word in words]
    try:
        call = argv.parse(words)
        argv.check_id(call.args[0] if call.args else "none")
    except Invalid:
        return
    if call.verb in ("help", "version", "exec", "ps") or call.probe or not call.args:
        assert places.asked(words) == ""
        return
    if call.verb == "state":
        read = call.root
        if read is None:
            return  # the host's own containers
    else:
        given_ = call.options.get("bundle", ".")
        assert isinstance(given_, str)
        read = given_
    file = places.directory / "z" / read / (f"{call.args[0]}/state.json" if call.verb == "state" else "config.json")
    letter = file.read_text() if file.is_file() else ""
    assert places.asked(argv.canonical(call, "runc")) == letter, "our words"
    assert places.asked(words) in (letter, ""), "the words as they came"


def test_most_spellings_are_accepted() -> None:
    accepted = 0
    for words in [*BUNDLES, *ROOTS]:
        try:
            argv.parse(words.split())
        except Invalid:
            continue
        accepted += 1
    assert accepted > len(BUNDLES + ROOTS) // 2


TOKENS = st.sampled_from(
    [
        *(
            "--bundle",
            "-b",
            "-bundle=@x",
            "--b=@y",
            "@x",
            "@y",
            "ID",
            "ID",
            "--",
            "-",
            "--no-pivot",
            "-no-new-keyring=0",
        ),
        *("--pid-file", "--preserve-fds", "1", "--help", "--console-socket=", "--no-pivot=true", "-b=", "--d"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["create", "run"]), st.lists(TOKENS, max_size=6))
def test_random_words_mean_what_they_mean_to_runc(places: Places, verb: str, words: list[str]) -> None:
    same_words(places, ["--root", "@y", verb, *words])


PROBES = [
    *(("runc", words) for words in ("restore --lsm-mount-context", "create --help", "restore -h", "exec -help")),
    *(("crun", words) for words in ("restore --lsm-mount-context", "create --help")),
]


@pytest.mark.parametrize(("kind", "words"), PROBES)
def test_probes_are_answered_by_the_delegate_itself(kind: str, words: str) -> None:
    if shutil.which(kind) is None:
        pytest.skip(f"NO {kind} HERE")
    call = argv.parse(words.split())
    assert call.probe

    def said(words: list[str]) -> tuple[int, str, str]:
        done = subprocess.run([kind, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert said(argv.canonical(call, kind)) == said(words.split())


def test_both_read_our_canonical_words(runtime: Runtime) -> None:
    """Options that both have, as canonical() writes them: crun's argp takes the very values."""
    (runtime.bundle / "config.json").write_bytes(text().encode())
    pid_file = runtime.bundle.parent / "-pid"
    words = ["-root", str(runtime.state), "--log=", "run", "-b", str(runtime.bundle), "-d=0", "--preserve-fds", "0"]
    words += [f"--pid-file={pid_file}", "-no-pivot=false", "--no-new-keyring", f"edge-words-{os.getpid()}"]
    ready = argv.canonical(argv.parse(words), runtime.name)
    done = subprocess.run([runtime.name, *ready], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split("\n")[0], done.stderr) == (0, "1000", "")
    assert pid_file.read_text().strip().isdigit()


def test_the_base_is_json() -> None:
    assert spec.check(json.loads(text()))[1] == []
