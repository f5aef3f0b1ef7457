"""A little of `make fuzz`, with a fixed seed: no finding; and each planted bug is found.

Belongs here: that the fuzzers run, and that they can fail. Next door: `targets` says what is required, `__main__` is
the long run, test_found.py keeps what it has found.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import delegates, libfuzzer, native, seeds, targets
from tests.fuzz.__main__ import SHARE, guided
from tests.fuzz.mutants import MUTANTS

ATHERIS = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason=f"SKIPPED LOUDLY: no atheris for Python {sys.version.split()[0]}",
)
CC = pytest.mark.skipif(shutil.which("cc") is None, reason="SKIPPED LOUDLY: no C compiler")
RUNS = {"wire": 4000, "argv": 8000, "spec": 3000, "plan": 1000, "policy": 1200, "launcher": 8000, "hook": 8000}


@ATHERIS
@CC
@pytest.mark.parametrize("name", SHARE)
def test_a_short_run_finds_nothing(name: str) -> None:
    row = guided(name, RUNS[name], seed=1)
    assert not row.findings, row.findings
    assert row.inputs >= RUNS[name]
    assert int(row.edges) > 20, "nothing was instrumented"


@ATHERIS
@CC
@pytest.mark.parametrize(("name", "mutant"), MUTANTS)
def test_a_planted_bug_is_found(name: str, mutant: str) -> None:
    row = guided(name, MUTANTS[name, mutant][1], 1, mutant)
    assert [one for one in row.findings if one["sign"].startswith("Finding ")], row


@CC
@pytest.mark.parametrize("name", targets.TARGETS)
@settings(max_examples=100)
@given(first=st.integers(0, 3), rest=st.binary(max_size=120))
def test_hypothesis_finds_nothing(name: str, first: int, rest: bytes) -> None:
    """The same targets with hypothesis' choices, which shrinks what it finds; all that there is without atheris."""
    targets.TARGETS[name](bytes([first]) + rest)


@CC
@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_corpus_finds_nothing(name: str) -> None:
    for data in seeds.corpus(name, 1):
        targets.TARGETS[name](data)


LIBFUZZER = pytest.mark.skipif(bool(libfuzzer.missing()), reason=f"SKIPPED LOUDLY: {libfuzzer.missing()}")


@LIBFUZZER
@pytest.mark.parametrize("program", libfuzzer.PROGRAMS)
def test_a_short_run_of_libfuzzer_finds_nothing(program: str) -> None:
    name, inputs, _, edges, _, findings = libfuzzer.run(program, 60, 1, 30000)
    assert not findings, findings
    assert name == f"{program}.c" and inputs >= 30000 and int(edges) > 50


# What a hand may forget in C: a NUL that is jumped over, a byte that is not looked at.
FORGOTTEN = {
    "a NUL behind a backslash": ("nethook", "(unsigned char)*++text < ' ')", "(++text, false))"),
    "the end of a line": (
        "launcher",
        "end + quoted + strspn(end + quoted,",
        "end + quoted + 1 + strspn(end + quoted + 1,",
    ),
    "the length of an undo": (
        "nethook",
        "!skip(words, &at, step->length[UNDO])",
        "(at += step->length[UNDO] / 4, false)",
    ),
    "a path that is not absolute": ("launcher", "slot[0] || value[0] != '/' ||", "slot[0] ||"),
}


@LIBFUZZER
@pytest.mark.parametrize("what", FORGOTTEN)
def test_libfuzzer_finds_a_planted_bug(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, old, new = FORGOTTEN[what]
    monkeypatch.setattr(native, "CHANGES", [(old, new)])
    findings: list[dict[str, Any]] = libfuzzer.run(program, 60, 1, 300_000)[5]
    assert findings, "not found"


REAL = pytest.mark.skipif(bool(delegates.missing()), reason=f"SKIPPED LOUDLY: {delegates.missing()}")


@REAL
def test_the_delegates_read_a_few_documents_as_we_do() -> None:
    _, runs, _, ran, _, findings = delegates.run(20, 1)
    assert not findings, findings
    assert runs >= 40 and int(ran.split()[0]) >= 10, "hardly anything was run"


@REAL
def test_the_delegates_tell_a_reader_that_takes_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: keys of another case are taken for unknown ones, and dropped."""
    monkeypatch.setattr("shim.spec._unknown", lambda key, here, fields, dropped: dropped.append(here))
    assert delegates.run(4, 1)[5]
