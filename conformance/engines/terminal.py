"""A command on a real pseudo-terminal, as a person would use it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from types import TracebackType

from conformance.engines.harness import Engine

ROWS, COLUMNS = 33, 111


class Terminal:
    """Runs a client command of `engine` with a terminal of 33 rows and 111 columns on all three descriptors."""

    def __init__(self, engine: Engine, words: Sequence[str]) -> None:
        self.seen = ""
        self._engine = engine
        self._words = words

    def __enter__(self) -> Terminal:
        self._fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        argv = [*self._engine.client, *self._words]
        self._child: subprocess.Popen[str] = self._engine.room.popen(
            argv, env=self._engine.env, start_new_session=True, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        os.close(self._fd)

    def send(self, text: str) -> None:
        """Type `text`."""
        os.write(self._fd, text.encode())

    def until(self, word: str, seconds: float = 20) -> None:
        """Read until `word` has been shown; TimeoutError with what was seen."""
        end = time.monotonic() + seconds
        while word not in self.seen:
            if time.monotonic() > end or not self._read():
                raise TimeoutError(f"{word!r} was not shown, but {self.seen!r}")

    def wait(self, seconds: float = 20) -> int:
        """Read to the end and return the exit code."""
        end = time.monotonic() + seconds
        while self._read() and time.monotonic() < end:
            pass
        return self._child.wait(max(1, end - time.monotonic()))

    def _read(self) -> bool:
        """One read of at most half a second; False at the end (EIO once every slave is closed)."""
        if not select.select([self._fd], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)
