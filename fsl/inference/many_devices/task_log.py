"""A record of each task, column by column."""

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class TaskRecords:
    """Answered tasks, in order of their ends; arrays (n,).

    `copies` and `devices` are indices. Seconds by phase: `head`, `upload`, `queue`, `tail` and `down`; `begun` and
    `ended` are those of the copy's clock. `joules`: of the device, by what each phase takes.
    """

    copies: np.ndarray
    devices: np.ndarray
    points: np.ndarray
    begun: np.ndarray
    head: np.ndarray
    upload: np.ndarray
    queue: np.ndarray
    tail: np.ndarray
    down: np.ndarray
    ended: np.ndarray
    joules: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """From each task's begin to its answer."""
        return self.ended - self.begun

    @staticmethod
    def joined(several: "list[TaskRecords]") -> "TaskRecords":
        """Returns several as one."""
        columns = [field.name for field in fields(TaskRecords)]
        return TaskRecords(*(np.concatenate([getattr(one, name) for one in several]) for name in columns))
