"""Text on command lines: so that Hydra's grammar, OmegaConf and a shell each give back what was put in."""

import re
import shlex
import unicodedata
from collections.abc import Iterable

_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[\w./-]*", re.ASCII)
_WORDS = {"null", "true", "false", "nan", "inf", "infinity"}  # in any case they are no text


# Of Unicode: controls (ESC and the C1 codes among them), what changes the direction of text, separators of lines, and
# halves of pairs, which no stream can encode.
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co"})


def printable(text: str, keep: str = "") -> str:
    """A text whose control characters are shown, not obeyed (`\\x1b`): nothing in it moves a cursor or forges a line.

    Characters in `keep` stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in _UNSEEN else _escaped(c) for c in text)


def one_line(text: str, longest: int = 500) -> str:
    """What came over the network, as a part of one line: white space joined, the rest as `printable`, cut at length."""
    return printable(" ".join(text[: 4 * longest].split()))[:longest]


def short(value: object, longest: int = 60) -> str:
    """A value's `repr` as a part of one line, cut at length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def override_value(text: str) -> str:
    """A text as the value of a Hydra override; in quotes where it could be read as anything else."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # else OmegaConf would look for what it names
    return "'" + re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\'", text)) + "'"


def shell_word(word: str) -> str:
    """A word as a POSIX shell takes it, in the quotes that are easier to read."""
    if shlex.quote(word) == word or re.search(r'["$`\\!\n]', word):
        return shlex.quote(word)
    return f'"{word}"'


def shell_line(words: Iterable[str]) -> str:
    """A command with its arguments, to be copied into a shell."""
    return " ".join(map(shell_word, words))
