"""The result of a simulation: its metrics, model, states and folder."""

import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.files import load_tensors
from fsl.run.observers import round_in_words
from fsl.run.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(repr=False)
class Run:
    """A finished simulation.

    `metrics`: a row per round, as in metrics.jsonl. `model`: the whole model with its final weights, None where
    fronts are private. `states`: the final tensors by segment, with the unsplit model's keys.
    """

    metrics: list[dict[str, Any]]
    model: nn.Module | None
    states: dict[str, dict[str, Tensor]]
    folder: RunFolder
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        words = round_in_words(self.metrics[-1]) if self.metrics else "nothing trained"
        kept = "" if self._temporary is not None else f", {self.folder.path}"
        return f"Run({len(self.metrics)} rounds: {words}{kept})"

    def plot(self) -> "Figure":
        """Accuracy and loss by round, side by side, as a matplotlib figure; a notebook shows it."""
        from fsl.run.figures import plot  # matplotlib takes a while to import

        return plot(self.metrics, repr(self).partition(":")[0].removeprefix("Run("))

    def front(self, device: int) -> dict[str, Tensor]:
        """A device's private front; ConfigError if it has none."""
        path = self.folder.fronts / f"{device}.safetensors"
        if not path.exists():
            raise ConfigError(f"device {device} has no private front in {self.folder.path}: it never trained")
        return load_tensors(path)
