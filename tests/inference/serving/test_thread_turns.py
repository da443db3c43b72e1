"""A process that serves has its threads take short turns, and no other."""

import sys

import pytest

from fsl.inference.serving.thread_turns import short_turns


def test_turns_are_short_within_and_as_before_behind():
    before = sys.getswitchinterval()
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(before / 10)
    assert sys.getswitchinterval() == before
