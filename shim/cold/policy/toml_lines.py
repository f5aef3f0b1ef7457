"""Where each key of a TOML document stands: key path -> line number.

tomllib keeps no positions. This scanner runs only on text that tomllib has accepted, so it checks nothing and only
follows brackets, strings and comments. Belongs here: positions. Next door: `policy_source` shows them in errors.
Source: toml.io v1.0.0.
"""

from __future__ import annotations

import re
from bisect import bisect_right

Path = tuple[str | int, ...]

# What separates keys and values: blanks, newlines and comments.
_GAP = re.compile(r"(?:[\s]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
# The four kinds of strings, the long ones first. Up to two quotes may stand just inside the closing three.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:\'{0,2})|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")


def lines(text: str) -> dict[Path, int]:
    """The line (1 is the first) of every table, key and array element in `text`; () is line 1.

    `text` must be valid TOML. A key that is given in parts (dotted, or [a.b]) has the line of its first part's use.
    """
    return _Scanner(text).document()


def statements(text: str) -> dict[int, tuple[Path, bool]]:
    """Line -> the path that is written there, and whether as the heading of a table, [a.b] or [[a.b]]. Valid TOML has
    one statement a line at most; lines that only continue one, comments and blank lines are left out.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.statements


def line_of(found: dict[Path, int], path: Path) -> int:
    """The line of `path`, or of its nearest parent that has one."""
    while path not in found:
        path = path[:-1]
    return found[path]


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, int] = {(): 1}
        self.statements: dict[int, tuple[Path, bool]] = {}
        self.counts: dict[Path, int] = {}  # elements seen in each [[array of tables]]
        self.newlines = [match.start() for match in re.finditer("\n", text)]

    def document(self) -> dict[Path, int]:
        table: Path = ()
        self.skip()
        while self.at < len(self.text):
            line = self.line(self.at)
            heads = self.text[self.at] == "["
            if heads:
                table = self.header()
            self.statements[line] = (table if heads else self.pair(table), heads)
            self.skip()
        return self.found

    def header(self) -> Path:
        """`[a.b]` or `[[a.b]]`: the path that the keys after it belong to."""
        start, double = self.at, self.text.startswith("[[", self.at)
        self.at += 2 if double else 1
        self.skip()
        names = self.key()
        self.skip()
        self.at += 2 if double else 1
        path: Path = ()
        for index, name in enumerate(names):
            path = (*path, name)
            self.mark(path, start)
            last = index == len(names) - 1
            if last and double:
                self.counts[path] = self.counts.get(path, -1) + 1
            if path in self.counts:
                path = (*path, self.counts[path])
                self.mark(path, start)
        return path

    def pair(self, table: Path) -> Path:
        start = self.at
        path = table
        for name in self.key():
            path = (*path, name)
            self.mark(path, start)
        self.skip()
        self.at += 1  # the equals sign
        self.skip()
        self.value(path)
        return path

    def value(self, path: Path) -> None:
        first = self.text[self.at]
        if first == "[":
            self.array(path)
        elif first == "{":
            self.inline(path)
        elif first in "\"'":
            self.take(_STRING)
        else:
            self.take(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while not self.closed("]"):
            self.mark((*path, index), self.at)
            self.value((*path, index))
            index += 1

    def inline(self, path: Path) -> None:
        self.at += 1
        while not self.closed("}"):
            self.pair(path)

    def closed(self, bracket: str) -> bool:
        """Passes a comma if there is one; whether `bracket` came next and was passed."""
        self.skip()
        if self.text[self.at] == ",":
            self.at += 1
            self.skip()
        if self.text[self.at] != bracket:
            return False
        self.at += 1
        return True

    def key(self) -> list[str]:
        """A bare, quoted or dotted key as its parts."""
        parts = [self.part()]
        while self.take(_DOT):
            parts.append(self.part())
        return parts

    def part(self) -> str:
        bare = self.take(_BARE)
        if bare:
            return bare
        quoted = self.take(_STRING)
        if quoted.startswith("'"):
            return quoted[1:-1]
        import tomllib  # the caller has it already; it knows the escapes

        return next(iter(tomllib.loads(f"{quoted} = 0")))

    def take(self, pattern: re.Pattern[str]) -> str:
        """What `pattern` matches here, passed; "" if it does not match."""
        match = pattern.match(self.text, self.at)
        if not match:
            return ""
        self.at = match.end()
        return match[0]

    def skip(self) -> None:
        self.take(_GAP)

    def mark(self, path: Path, at: int) -> None:
        self.found.setdefault(path, self.line(at))

    def line(self, at: int) -> int:
        return bisect_right(self.newlines, at - 1) + 1
