"""TensorBoard: always on, nothing leaves the machine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from fsl.run.observers import RunInfo
from fsl.trackers.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """The numbers of each round as TensorBoard scalars, in `tensorboard/` of the run's folder."""

    title: ClassVar[str] = "TensorBoard"
    _writer: "SummaryWriter"

    def open(self, info: RunInfo) -> None:
        """Open the event file; a resumed run hides what was written after its checkpoint."""
        from torch.utils.tensorboard import SummaryWriter

        purge = info.first_round if info.first_round > 1 else None
        self._writer = SummaryWriter(f"{info.folder}/tensorboard", purge_step=purge)

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write every number."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, round)

    def close(self, info: RunInfo, complete: bool) -> None:
        """Flush and close."""
        self._writer.close()
