"""How soon threads take turns in a process that does nothing but serve a model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS = 0.0005


@contextmanager
def short_turns() -> Iterator[None]:
    """Have this process's threads give way to each other ten times as soon as Python has them.

    An edge's network thread and the one that computes wait for each other's turn, 5 ms by default: as long as several
    batches of a small model take.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
