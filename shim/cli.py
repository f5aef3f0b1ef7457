"""Verbs to modules, and the one place where an error becomes a message, a log line and an exit code."""

from __future__ import annotations

import posix
import sys

from shim import argv
from shim.errors import Bug, ShimError, unanswered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.argv import Call
    from shim.audit import Entry

# What agentshim decides, and what it adds of its own; every other verb goes to the delegate as it is.
COLD = ("explain", "policy", "doctor", "complete", "audit", *argv.NETWORK, *argv.ENGINES)
LAUNCHER_ARGUMENTS = 3


class Context:
    """What the launcher told: `ignored`: its mask of ignored signals; `execfn`: the path it was executed by.
    `entry`: the call's record in the audit log, as far as a verb has got with it.
    """

    __slots__ = ("ignored", "execfn", "entry")

    def __init__(self, ignored: int, execfn: str) -> None:
        self.ignored = ignored
        self.execfn = execfn
        self.entry: Entry | None = None


def main(arguments: list[str]) -> int:
    """Runs one call; returns only if it was ours to answer or was refused. Exit codes are the delegate's."""
    context = Context(int(arguments[0]), arguments[1])
    refused_exec = 1 if "crun" in arguments[2].rpartition("/")[2] else 255
    words = arguments[LAUNCHER_ARGUMENTS:]
    try:
        call = argv.parse(words)
        return _run(call, context)
    except ShimError as error:
        return _fail(error, words, refused_exec, context.entry)
    except RecursionError:
        bug = Bug("cli", "recursion", "too deep", "a flat request", "report this; nothing was run")
        return _fail(bug, words, refused_exec, context.entry)
    except (OSError, ImportError) as error:  # from a call whose failure has no words of its own, or a late import
        key = getattr(error, "filename", None) or getattr(error, "name", None) or _place(error)
        host = unanswered("host", str(key), error)
        return _fail(host, words, refused_exec, context.entry)
    except Exception as error:
        # A traceback would go to the container's own output; where it happened is enough to report it.
        asked = f"{type(error).__name__}: {error}"
        bug = Bug("cli", _place(error), asked, "no such error", "report this; nothing was run")
        return _fail(bug, words, refused_exec, context.entry)


def _place(error: BaseException) -> str:
    """The file and line of ours where it happened."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"


def _run(call: Call, context: Context) -> int:
    if call.verb in COLD or call.verb in ("", "help", "version"):
        from shim.cold import front  # argparse and friends: never on a container's way

        return front.run(call, context)
    if call.verb == "hook":
        from shim.verbs import hook

        return hook.run(call)
    if call.verb in ("create", "run", "restore") and not call.probe:
        from shim.verbs import create

        return create.run(call, context)
    if call.verb == "exec" and not call.probe:
        from shim.verbs import execute

        return execute.run(call, context)
    if call.verb == "update" and not call.probe:
        from shim.verbs import update

        return update.run(call, context)
    from shim.verbs import passed

    return passed.run(call, context)


def _fail(error: ShimError, words: list[str], refused_exec: int, entry: Entry | None) -> int:
    """Says `error` once on stderr, once in the engine's log and once in ours; the exit code that the delegate would
    give.
    """
    log, is_json, verb = _intent(words)
    message = str(error) + _recorded(error, verb, entry)
    sys.stderr.write(message + "\n")
    if log:
        _log(log, is_json, message)
    return refused_exec if verb == "exec" else 1


def _recorded(error: ShimError, verb: str, entry: Entry | None) -> str:
    """Puts a refusal into the audit log; what to add to its message if that is not possible."""
    if entry is None and verb not in argv.RECORDED:
        return ""
    try:
        from shim import audit, policy  # a verb that decides has them already

        one = entry or audit.Entry(verb)  # without an entry, its words could not be read
        try:
            one.on_failure = policy.config().audit_log  # it may have failed before that was asked
        except ShimError:
            pass  # the default, or what was read of it
        return one.refused(error)
    except Exception as trouble:
        return f"; not recorded: {type(trouble).__name__}"


def _intent(words: list[str]) -> tuple[str, bool, str]:
    """(log file, whether it is JSON, verb) of a call that may be malformed: read leniently, only to report."""
    log, form, verb, at = "", "text", "", 0
    while at < len(words) and not verb:
        name, equals, value = words[at].lstrip("-").partition("=")
        if words[at][:1] != "-":
            verb = words[at]
        elif name in argv.GLOBALS and name not in argv.FLAGS | argv.TEXT_GLOBALS and not equals:
            at += 1
            value = words[at] if at < len(words) else ""
        log, form = (value, form) if name == "log" else (log, value) if name == "log-format" else (log, form)
        at += 1
    return log, form == "json", verb


def _log(path: str, is_json: bool, message: str) -> None:
    """One line at the end of the engine's log file: containerd shows the last error of a JSON log to its user."""
    import time

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{now}" level=error msg="{message}"\n'.encode("utf-8", "replace")
    if is_json:
        from shim import wire

        line = wire.dumps({"level": "error", "msg": message, "time": now}) + b"\n"
    try:
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK
        fd = posix.open(path, flags, 0o644)
    except OSError:
        return  # the message is on stderr; there is no third place
    try:
        posix.write(fd, line)
    except OSError:
        pass
    finally:
        posix.close(fd)
