"""Bytes -> documents: a fuzzer's bytes read as choices, so that most inputs are nearly well-formed specs.

Belongs here: the reader of choices, JSON as a tree that may hold what no dict can (a key twice, tokens that are no
JSON), and growing and damaging such trees along the shapes of shim.spec. Next door: `targets` feeds them to our code.
"""

from __future__ import annotations

from typing import Any

from shim import spec
from tests.fuzz.vocabulary import LETTERS, NUMBERS, TOKENS, WORDS, WORDS_AT


class Reader:
    """Choices from bytes; zeros behind the end, so that every prefix means something."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether a byte is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, count: int) -> int:
        """A number in [0, count), of one byte where that suffices."""
        value = self.byte() if count <= 256 else self.byte() << 8 | self.byte()
        return value % count

    def pick(self, items: Any) -> Any:
        return items[self.below(len(items))]

    def often(self) -> bool:
        """True seven times of eight."""
        return self.byte() % 8 != 7

    def text(self) -> str:
        return "".join(self.pick(LETTERS) for _ in range(self.below(8)))

    def rest(self) -> bytes:
        self._at, start = len(self._data), self._at
        return self._data[start:]


class Raw(str):
    """Characters that stand for a value as they are."""


class Pairs(list[list[Any]]):
    """An object as [key, value] lists, in order: a key may come twice."""

    def get(self, key: str) -> Any:
        """The first value of `key`, None without."""
        return next((value for name, value in self if name == key), None)

    def put(self, key: str, value: Any) -> None:
        for pair in self:
            if pair[0] == key:
                pair[1] = value
                return
        self.append([key, value])


def tree(value: Any) -> Any:
    """A JSON value as a tree."""
    if isinstance(value, dict):
        return Pairs([key, tree(inner)] for key, inner in value.items())
    return [tree(one) for one in value] if isinstance(value, list) else value


def text(value: Any) -> str:
    """A tree as JSON; characters as they are, but for what must be escaped."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{quoted(key)}:{text(inner)}" for key, inner in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(text(one) for one in value) + "]"
    if isinstance(value, str):
        return quoted(value)
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def quoted(value: str) -> str:
    if isinstance(value, Raw):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in escaped) + '"'


def words_at(path: str) -> list[str]:
    """Texts that mean something at a dotted path; '' as the last word: the values of a map."""
    return WORDS_AT.get(path) or WORDS.get(path.rpartition(".")[2]) or []


def grow(shape: Any, path: str, r: Reader) -> Any:
    """A tree of a shape, mostly well formed."""
    if isinstance(shape, spec.Object):
        names = [*shape.required, *(r.pick(list(shape.fields)) for _ in range(r.below(3)))]
        return Pairs([name, grow(shape.fields[name], f"{path}.{name}".lstrip("."), r)] for name in dict.fromkeys(names))
    if isinstance(shape, spec.List):
        return [grow(shape.inner, path, r) for _ in range(r.below(4))]
    if isinstance(shape, spec.Map):
        keys = dict.fromkeys(word(path, r) for _ in range(r.below(3)))
        return Pairs([key, grow(shape.inner, path + ".", r)] for key in keys)
    if isinstance(shape, tuple):
        least, greatest = shape
        fitting = [number for number in NUMBERS if least <= number <= greatest]
        return r.pick(fitting) if r.often() else r.pick(NUMBERS)
    if shape is bool:
        return r.below(2) == 1
    return word(path, r)


def word(path: str, r: Reader) -> str:
    known = words_at(path)
    found: str = r.pick(known) if known and r.often() else r.text()
    return found


def edit(whole: Any, shape: Any, r: Reader, hard: bool) -> None:
    """One change somewhere in the tree, along the shapes. `hard`: with what is no JSON, and what is read two ways."""
    here, path = whole, ""
    while True:
        if isinstance(shape, spec.Object):
            if not isinstance(here, Pairs):
                return
            name = r.pick(list(shape.fields))
            inner, spot = shape.fields[name], f"{path}.{name}".lstrip(".")
            old = here.get(name)
            deeper = isinstance(inner, spec.Object | spec.List) and old is not None and r.often()
            if not deeper:
                return _change(here, name, inner, spot, r, hard)
            here, shape, path = old, inner, spot
        elif isinstance(shape, spec.List):
            if not isinstance(here, list) or isinstance(here, Pairs):
                return
            at = r.below(len(here) + 1)
            if at == len(here) or not isinstance(shape.inner, spec.Object):
                return _change_list(here, at, shape.inner, path, r, hard)
            here, shape = here[at], shape.inner
        else:
            return


def _change(here: Pairs, name: str, shape: Any, path: str, r: Reader, hard: bool) -> None:
    how = r.below(16 if hard else 8)
    if how < 6:
        here.put(name, grow(shape, path, r))
    elif how < 8:
        here[:] = [pair for pair in here if pair[0] != name]
    elif how == 8:
        here.append([name, grow(shape, path, r)])  # perhaps twice
    elif how == 9:
        here.append([folded(name, r), grow(shape, path, r)])
    elif how == 10:
        here.put(name, None)
    elif how == 11:
        here.append([r.text(), Raw(r.pick(TOKENS))])
    elif how == 12:
        here.append([Raw('"' + "".join(f"\\u{ord(c):04x}" for c in name) + '"'), grow(shape, path, r)])
    elif how == 13:
        here.append([name + r.pick(["\0", "\0x", "\ufeff", " "]), grow(shape, path, r)])
    else:
        here.put(name, Raw(r.pick(TOKENS)))


def _change_list(here: list[Any], at: int, shape: Any, path: str, r: Reader, hard: bool) -> None:
    how = r.below(8 if hard else 6)
    new = grow(shape, path, r) if how < 6 else Raw(r.pick(TOKENS))
    if at == len(here) or how in (0, 1, 7):
        here.insert(at, new)
    elif how in (2, 3, 6):
        here[at] = new
    else:
        del here[at]


def folded(name: str, r: Reader) -> str:
    """`name` in another case, in the letters that Unicode folds to the same too."""
    forms = {"s": "sSſ", "k": "kK\u212a"}
    return "".join(r.pick(forms.get(c, c + c.upper())) for c in name)
