"""argv: parse() against a model of Go's flag package; what canonical() says, a second reader reads alike."""

from __future__ import annotations

from shim import argv
from shim.errors import Invalid
from tests.fuzz import grow
from tests.fuzz.properties import as_finding, demand, only, target

_SPELLED = """
ID -- - 3 08 -1 x /b a=b true json text --root --root=/r -root=/r --log --log=/l --log-format --log-format=json
--debug --criu --systemd-cgroup --rootless --rootless=true --help -h -v --version --roo ---x -= -td --bundle -b
-b=/b --pid-file --detach -d=false --detach=x --preserve-fds --cap -t -e --lsm-mount-context --no-pivot
--no-pivot=0 --process -p --resources -r --resources=- --memory --pids-limit --force -f --all --console-socket
--no-subreaper -no-subreaper = - --debug=1 --debug=false --root= --log= --cgroup --user 1:2 --tty=false
"""
WORDS = [*argv.VERBS, *argv.OURS, *argv.HELP, *_SPELLED.split(), "", "\udcff", "é"]


def words_of(data: bytes) -> list[str]:
    """Words from bytes: known ones by number, others by their letters."""
    if data[:1] == b"\1":
        return [one.decode("utf-8", "surrogateescape") for one in data[1:].split(b"\n")][:24]
    r = grow.Reader(data)
    out: list[str] = []
    while r.more and len(out) < 24:
        word = r.pick(WORDS) if r.often() else r.text().replace("\0", "").replace("\ud800", "")
        if r.byte() % 16 == 15:
            word += "=" + r.pick(WORDS)
        out.append(word)
    return out


def go_flags(words: list[str], flags: set[str], values: set[str]) -> tuple[dict[str, str], list[str]] | None:
    """Go's flag package over `words`: the last value of each option by name, and what follows; None where it stops."""
    given: dict[str, str] = {}
    at = 0
    while at < len(words):
        word = words[at]
        if len(word) < 2 or word[0] != "-":
            break
        at += 1
        if word == "--":
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if not name or name[0] == "-" or name not in flags | values:
            return None
        if name in flags:
            if equals and value not in (
                "1",
                "0",
                "t",
                "f",
                "T",
                "F",
                "true",
                "false",
                "TRUE",
                "FALSE",
                "True",
                "False",
            ):
                return None
            given[name] = value if equals else "true"
            continue
        if not equals:
            if at == len(words):
                return None
            value, at = words[at], at + 1
        given[name] = value
    return given, words[at:]


GLOBAL_FLAGS = {"debug", "systemd-cgroup", "help", "h", "version", "v"}
GLOBAL_VALUES = {"root", "log", "log-format", "criu", "rootless"}


@target
def target_argv(data: bytes) -> None:
    words = words_of(data)
    with only(Invalid):
        call = argv.parse(words)
    if call.verb in argv.OURS and call.verb != "version":
        return
    model = go_flags(words, GLOBAL_FLAGS, GLOBAL_VALUES)
    demand(model is not None, "runc reads no globals in these words", words)
    assert model is not None
    if call.verb not in ("help", "version"):
        demand(model[1][:1] == [call.verb], "runc takes another verb", words, call.verb, model)
        demand(model[0].get("root") == call.root, "runc takes another root", words, call.root, model)
    for kind in ("runc", "crun"):
        said = argv.canonical(call, kind)
        with as_finding("canonical words that we refuse", said):
            again = argv.parse(said)
        demand(argv.canonical(again, kind) == said, "canonical words that read otherwise", said)
        demand((again.verb, again.args) == (call.verb, call.args) or call.verb in ("help", "version"), "changed", said)
        _same_to_go(call, said)
    if call.args and not call.probe and call.verb not in ("help", "version"):
        with only(Invalid):
            argv.check_id(call.args[0])
        demand("/" not in call.args[0] and call.args[0] not in (".", "..", ""), "an id that is a path", call.args)


def _same_to_go(call: argv.Call, said: list[str]) -> None:
    """Go's flag package reads what we say as we mean it."""
    if call.probe or call.verb not in argv.VERBS:
        return
    whole = go_flags(said, GLOBAL_FLAGS, GLOBAL_VALUES)
    demand(whole is not None and whole[1][:1] == [call.verb], "canonical globals", said)
    assert whole is not None
    names = set(argv.VERBS[call.verb][0].split())
    inner = go_flags(whole[1][1:], names & argv.FLAGS, names - argv.FLAGS)
    demand(inner is not None and inner[1] == call.args, "canonical options", said)
    assert inner is not None
    for name, value in call.options.items():
        told = inner[0].get(name)
        wanted = value[-1] if isinstance(value, list) else value
        fine = told == str(wanted) if not isinstance(wanted, bool) else (told == "true") == wanted
        demand(fine, "a canonical option with another value", said, name, told, value)
