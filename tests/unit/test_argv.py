"""argv: runc's grammar in every spelling, and the one spelling that we pass on."""

from __future__ import annotations

from typing import Any

import pytest

from shim import argv
from shim.errors import Bug, Invalid

# What engines are known to call (seen live, or read in their source): words, verb, options, args.
ENGINES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    (
        "--root R --log L --log-format json --systemd-cgroup create --bundle B --pid-file P --console-socket S ID",
        "create",
        {"bundle": "B", "pid-file": "P", "console-socket": "S"},
        ["ID"],
    ),
    (
        "--root R --log L --log-format json exec --process F --console-socket S --detach --pid-file P ID",
        "exec",
        {"process": "F", "console-socket": "S", "detach": True, "pid-file": "P"},
        ["ID"],
    ),
    ("--root R update --resources=- ID", "update", {"resources": "-"}, ["ID"]),
    ("--root R update --resources - ID", "update", {"resources": "-"}, ["ID"]),
    (
        "restore --image-path I --work-path W --detach --pid-file P -no-subreaper --bundle B ID",
        "restore",
        {"image-path": "I", "work-path": "W", "detach": True, "pid-file": "P", "no-subreaper": True, "bundle": "B"},
        ["ID"],
    ),
    ("--log F --log-format json run --bundle B --keep ID", "run", {"bundle": "B", "keep": True}, ["ID"]),
    (
        "--log-format=json --log F create --bundle B --pid-file P --no-pivot --no-new-keyring --preserve-fds 2 ID",
        "create",
        {"bundle": "B", "pid-file": "P", "no-pivot": True, "no-new-keyring": True, "preserve-fds": 2},
        ["ID"],
    ),
    (
        "exec --pid-file P --process F --detach --preserve-fds 1 --tty --console-socket S ID",
        "exec",
        {"pid-file": "P", "process": "F", "detach": True, "preserve-fds": 1, "tty": True, "console-socket": "S"},
        ["ID"],
    ),
    ("kill --all ID 9", "kill", {"all": True}, ["ID", "9"]),
    ("ps --format json ID", "ps", {"format": "json"}, ["ID"]),
    ("events --stats ID", "events", {"stats": True}, ["ID"]),
    ("delete --force ID", "delete", {"force": True}, ["ID"]),
    ("list -f json -q", "list", {"format": "json", "quiet": True}, []),
    ("features", "features", {}, []),
    (
        "checkpoint --image-path I --work-path W --leave-running --empty-ns network --empty-ns user ID",
        "checkpoint",
        {"image-path": "I", "work-path": "W", "leave-running": True, "empty-ns": ["network", "user"]},
        ["ID"],
    ),
]


@pytest.mark.parametrize(("words", "verb", "options", "args"), ENGINES)
def test_what_engines_call(words: str, verb: str, options: dict[str, Any], args: list[str]) -> None:
    call = argv.parse(words.split())
    assert (call.verb, call.options, call.args, call.probe) == (verb, options, args, False)
    for kind in ("runc", "crun"):
        again = argv.parse(argv.canonical(call, kind))
        assert (again.globals, again.verb, again.options, again.args) == (call.globals, verb, options, args)


@pytest.mark.parametrize(
    "words",
    ["--bundle X", "--bundle=X", "-bundle X", "-bundle=X", "-b X", "-b=X", "--b X", "--b=X", "-b Y -b X", "-b= -b X"],
)
def test_spellings_of_one_option(words: str) -> None:
    for verb in ("create", "run", "restore"):
        for order in ([verb, *words.split(), "ID"], [verb, "ID", *words.split()], [verb, *words.split(), "--", "ID"]):
            call = argv.parse(order)
            assert call.options == {"bundle": "X"}
            assert argv.canonical(call, "runc") == [verb, "--bundle", "X", "ID"]


def test_globals() -> None:
    call = argv.parse(
        ["-root=/a", "--root", "/r", "--log=l", "--debug", "--rootless", "auto", "--criu=c", "state", "ID"]
    )
    assert (call.root, call.log, call.log_format, call.debug, call.systemd_cgroup) == ("/r", "l", "text", True, False)
    assert (call.criu, call.rootless) == ("c", "auto")
    assert "--criu" in argv.canonical(call, "runc")
    assert "--criu" not in argv.canonical(call, "crun")
    assert argv.parse(["--systemd-cgroup=false", "--log", "", "list"]).globals == {"systemd-cgroup": False}
    assert argv.parse(["--", "state", "ID"]).verb == "state"
    assert argv.parse(["state", "ID"]).root is None


def test_flags_with_values() -> None:
    for word in ("1", "t", "T", "true", "TRUE", "True"):
        assert argv.parse(["run", f"--detach={word}", "ID"]).options == {"detach": True}
    for word in ("0", "f", "F", "false", "FALSE", "False"):
        call = argv.parse(["run", "-d", f"-d={word}", "ID"])
        assert call.options == {"detach": False}
        assert argv.canonical(call, "runc") == ["run", "ID"]
    call = argv.parse(["exec", "--tty=false", "--no-new-privs=0", "--detach=0", "ID", "sh"])
    assert argv.canonical(call, "runc") == ["exec", "--tty=false", "--no-new-privs=false", "ID", "sh"]
    assert argv.canonical(call, "crun") == ["exec", "--tty=false", "ID", "sh"]


def test_the_command_of_exec_is_its_own() -> None:
    words = [
        "exec",
        "-e",
        "A=1",
        "-e=B=2",
        "-c",
        "CAP_KILL",
        "-g",
        "5",
        "-t",
        "ID",
        "ls",
        "-d",
        "--",
        "--cap=CAP_SYS_ADMIN",
    ]
    call = argv.parse(words)
    assert call.options == {"env": ["A=1", "B=2"], "cap": ["CAP_KILL"], "additional-gids": ["5"], "tty": True}
    assert call.args == ["ID", "ls", "-d", "--", "--cap=CAP_SYS_ADMIN"]
    assert argv.parse(["exec", "--", "ID", "--detach"]).args == ["ID", "--detach"]
    assert argv.parse(["ps", "ID", "-ef", "--format"]).args == ["ID", "-ef", "--format"]


def test_a_value_may_look_like_an_option() -> None:
    assert argv.parse(["create", "--bundle", "-d", "ID"]).options == {"bundle": "-d"}
    assert argv.parse(["create", "--bundle", "--", "ID"]).options == {"bundle": "--"}
    assert argv.parse(["create", "--bundle=a=b", "ID"]).options == {"bundle": "a=b"}


REFUSED = {
    "an abbreviation": "--roo R state ID",
    "an abbreviation of a verb's": "create --bundl B ID",
    "glued to its letter": "create -bB ID",
    "letters in one": "exec -td ID sh",
    "three dashes": "create ---bundle B ID",
    "a dash and nothing": "create -=x ID",
    "two dashes and nothing": "create --=x ID",
    "a global after the verb": "create --root R ID",
    "an option of another verb": "create --detach ID",
    "an option nobody has": "--cgroup-manager disabled state ID",
    "another config file": "run --config F ID",
    "upper case": "--ROOT R state ID",
    "upper case of a verb": "CREATE ID",
    "no value": "create --bundle",
    "no value for a global": "--root",
    "no true, no false": "run --detach=maybe ID",
    "a flag with a word": "run --detach false ID",
    "two forms": "create -b X --bundle X ID",
    "octal": "create --preserve-fds 010 ID",
    "hexadecimal": "create --preserve-fds 0x1 ID",
    "underscores": "create --preserve-fds 1_0 ID",
    "other digits": "create --preserve-fds \u0661 ID",
    "negative": "create --preserve-fds -1 ID",
    "minus nought": "create --preserve-fds -0 ID",
    "huge": "update --pids-limit 99999999999 ID",
    "a number that is none": "create --preserve-fds= ID",
    "no id": "create",
    "two ids": "create ID ID2",
    "one word too many": "kill ID 9 9",
    "an option after --": "create ID -- --bundle B",
    "empty root": "--root= state ID",
    "log format": "--log-format yaml state ID",
    "crun's verb": "mounts add ID x",
    "no verb of ours": "frob ID",
    "an empty verb": "'' ID",
    "version of a verb": "create --version ID",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    words = ["" if word == "''" else word for word in REFUSED[name].split()]
    with pytest.raises(Invalid) as caught:
        argv.parse(words)
    assert str(caught.value).startswith("argv: ")
    assert "\n" not in str(caught.value)


def test_a_refusal_says_what_is_known() -> None:
    with pytest.raises(Invalid, match="--bundle --console-socket"):
        argv.parse(["create", "--foo", "ID"])
    with pytest.raises(Invalid, match="create run restore"):
        argv.parse(["frob"])


@pytest.mark.parametrize(
    "words", [["restore", "--help"], ["create", "-h"], ["create", "ID", "-help"], ["exec", "-b", "--help"]]
)
def test_probes_for_help(words: list[str]) -> None:
    if "-b" in words:
        with pytest.raises(Invalid):
            argv.parse(words)
        return
    call = argv.parse(words)
    assert (call.verb, call.probe) == (words[0], True)
    assert argv.canonical(call, "runc") == [words[0], "--help"]
    assert argv.canonical(call, "crun") == [words[0], "--help"]


def test_no_probe() -> None:
    assert not argv.parse(["exec", "ID", "ls", "--help"]).probe
    assert not argv.parse(["create", "--bundle", "--help", "ID"]).probe
    assert not argv.parse(["create", "--help=false", "ID"]).probe
    assert not argv.parse(["restore", "--lsm-mount-context", "x", "ID"]).probe


def test_the_probe_for_lsm_mount_context() -> None:
    call = argv.parse(["--log", "l", "restore", "--lsm-mount-context"])
    assert call.probe
    assert argv.canonical(call, "runc") == ["--log", "l", "restore", "--lsm-mount-context"]


@pytest.mark.parametrize("words", [["--version"], ["-v"], ["--root", "R", "-version", "create", "ID"]])
def test_version(words: list[str]) -> None:
    call = argv.parse(words)
    assert call.verb == "version"
    assert argv.canonical(call, "runc")[-1] == "--version"


@pytest.mark.parametrize("words", [[], ["help"], ["h", "create"], ["--help"], ["-h", "-v"], ["--root", "R"]])
def test_help(words: list[str]) -> None:
    call = argv.parse(words)
    assert call.verb == "help"
    assert argv.canonical(call, "crun")[-1] == "--help"


def test_our_own_verbs_keep_their_words() -> None:
    call = argv.parse(["--root", "R", "explain", "--policy", "web", "B"])
    assert (call.verb, call.root, call.args) == ("explain", "R", ["--policy", "web", "B"])
    with pytest.raises(Bug):
        argv.canonical(call, "runc")
    with pytest.raises(Bug):
        argv.canonical(argv.parse(["list"]), "youki")


@pytest.mark.parametrize("id_", ["a", "A-b_c.d+e,f", "a..b", "9" * 1024, "..."])
def test_ids(id_: str) -> None:
    assert argv.check_id(id_) == id_


@pytest.mark.parametrize(
    "id_", ["", ".", "..", "a/b", "../x", "/", "a b", "é", "a\n", "-x", "--", "a" * 1025, "a\0", "a:b"]
)
def test_no_ids(id_: str) -> None:
    with pytest.raises(Invalid, match=r"^argv: id: "):
        argv.check_id(id_)


def test_the_tables_agree() -> None:
    names = {name for verb in argv.VERBS.values() for name in verb[0].split()} | set(argv.GLOBALS)
    assert names >= argv.FLAGS
    assert names >= argv.LISTS | set(argv.INTEGERS)
    assert not argv.FLAGS & argv.LISTS
    for verb, (options, _, _) in argv.VERBS.items():
        for letter, longs in argv.SHORT.items():
            assert sum(name in options.split() for name in longs) <= 1, (verb, letter)
