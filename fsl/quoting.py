"""Text on command lines: so that Hydra's grammar, OmegaConf and a shell each give back what was put in."""

import re
import shlex
from collections.abc import Iterable

_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.{1,2}/)[\w./-]*", re.ASCII)
_WORDS = {"null", "true", "false", "nan", "inf", "infinity"}  # in any case they are no text


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
