"""The targets by name: each takes bytes, calls our code, and fails where a property does not hold.

    wire      loads() against the json package as an oracle; what it takes, dumps() gives back
    argv      parse() against a model of Go's flag package; canonical() says the same to a second reader
    spec      check() against models of how runc and crun read the same bytes (readers.py)
    plan      make(): never above asked or ceiling, by our own order and by oracle.py; a second time changes nothing
    policy    TOML -> schema -> sections: never above the host limit, by our own order and by oracle.py
    launcher  what native/launcher.c takes for a verb to pass on or for the delegate, Python and tomllib take for it too
    hook      native/nethook.c and hooks/plan.py take the same files for plans; its reading of the state is json's

Only ShimError may come out of our code, as one printable line; Bug among them is a finding. Next door: `__main__` runs
a target under a coverage-guided fuzzer, test_fuzz.py a little of each.
"""

from __future__ import annotations

from tests.fuzz.on_argv import target_argv
from tests.fuzz.on_native import target_hook, target_launcher
from tests.fuzz.on_plan import target_plan
from tests.fuzz.on_policy import target_policy
from tests.fuzz.on_spec import target_spec
from tests.fuzz.on_wire import target_wire
from tests.fuzz.properties import Target

TARGETS: dict[str, Target] = {
    "wire": target_wire,
    "argv": target_argv,
    "spec": target_spec,
    "plan": target_plan,
    "policy": target_policy,
    "launcher": target_launcher,
    "hook": target_hook,
}
