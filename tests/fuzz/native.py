"""Our C programs as a library for the fuzzer: each file as it is, with its `main` renamed, called through ctypes.

Belongs here: building fuzz_*.c, and calls with Python's types. Next door: fuzz_launcher.c and fuzz_nethook.c, which
libFuzzer runs under the sanitizers too.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "native"
CHANGES: list[tuple[str, str]] = []  # text -> text, of mutants: each must be in one of the files


class Native:
    """The parsers of launcher.c and nethook.c. Bytes given to them hold no NUL where the programs' would hold none."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.fuzz_verb.restype = self._c.fuzz_delegate.restype = ctypes.c_char_p
        self._c.fuzz_plan.argtypes = (ctypes.c_char_p, ctypes.c_size_t)

    def parsed(self, words: list[bytes]) -> tuple[bytes | None, bool]:
        """The verb of the words behind the program's name, and whether they are passed on undecided."""
        array = (ctypes.c_char_p * (len(words) + 2))(b"agentshim", *words, None)
        return self._c.fuzz_verb(array), bool(self._c.fuzz_passes(array))

    def configured(self, text: bytes) -> tuple[bool, bytes | None]:
        """Whether config.toml's text is understood, and the delegate that it names."""
        understood = bool(self._c.fuzz_configured(text))
        return understood, self._c.fuzz_delegate() if understood else None

    def plan_is_whole(self, data: bytes) -> bool:
        return bool(self._c.fuzz_plan(data, len(data)))

    def pid_of(self, text: bytes) -> int:
        return int(self._c.fuzz_pid(text))


def changed(directory: Path) -> None:
    """The programs' sources in `directory`, with CHANGES."""
    texts = {source.name: source.read_text() for source in NATIVE.glob("*.c")}
    for old, new in CHANGES:
        assert any(old in text for text in texts.values()), f"the mutant's text is gone: {old}"
        texts = {name: text.replace(old, new) for name, text in texts.items()}
    for name, text in texts.items():
        (directory / name).write_text(text)


@functools.cache
def native() -> Native:
    """The library, compiled once a process."""
    directory = Path(tempfile.mkdtemp(prefix="agentshim-fuzz-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    library = directory / "fuzz.so"
    changed(directory)
    cc = os.environ.get("CC", "cc")
    parts = []
    for source in ("fuzz_launcher.c", "fuzz_nethook.c"):
        part = directory / (source + ".o")
        command = [
            cc,
            "-std=gnu11",
            "-g",
            "-O1",
            "-fPIC",
            "-w",
            f"-I{directory}",
            "-c",
            "-o",
            str(part),
            str(HERE / source),
        ]
        subprocess.run(command, check=True)
        parts.append(str(part))
    subprocess.run([cc, "-shared", "-o", str(library), *parts], check=True)
    return Native(library)
