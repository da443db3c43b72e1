"""What a command prints to be typed again says what it means, to a shell and to Hydra."""

import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fsl.quoting import override_value, shell_line, shell_word

TEXTS = [
    "outputs/2026-11-25/16-10-46", "a=1,b=2", "x y", "it's", "both ' and \"", "$HOME", "${now:%Y}", "\\${x}", "a\\",
    "a\\'", "[1]", "{a:b}", "null", "TRUE", "1e5", "12", ".5", "-x", "", "ü", "a#b", "a!b", "a`b", "(x)", "~",
    "a;b&c|d", "x\\'${y}'", "../a", "choice(1,2)", "'quoted'", " lead", "@x", "a:b", "tab\tx",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_hydra_and_omegaconf_as_it_was(text):
    (override,) = OverridesParser.create().parse_overrides([f"resume={override_value(text)}"])
    assert OmegaConf.create({"resume": override.value()})["resume"] == text


def test_words_come_back_from_a_shell_as_they_were():
    words = [f"resume={override_value(text)}" for text in TEXTS]
    line = shell_line(["printf", "%s\\n", *words])
    assert (
        subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout.split("\n")[:-1] == words
    )


def test_what_needs_no_quotes_has_none():
    assert shell_word(f"resume={override_value('outputs/run-1')}") == "resume=outputs/run-1"


def test_quotes_of_both_kinds_can_be_read():
    assert shell_word(f"resume={override_value('a=1,b=2')}") == "\"resume='a=1,b=2'\""
