"""Who may ask an edge now, beside who may come in at all."""

from typing import Protocol


class QuestionAdmission(Protocol):
    """Decides for each question whether an edge takes it; asked on the network thread, so that it must be quick."""

    def refused_seconds(self, name: str, point: str) -> float:
        """Returns 0 where a device of this name may ask at this point; else after how many seconds it may try again.

        `name` is that of the device's token, and "anybody" where an edge has no keys.
        """
