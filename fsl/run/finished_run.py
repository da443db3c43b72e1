"""The result of a simulation: its metrics, model, states and folder."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.export.pretrained import save_trained
from fsl.export.trained_model import TrainedModel
from fsl.run.observers import round_in_words
from fsl.run.run_folder import RunFolder
from fsl.run.run_table import run_as_html

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
    _trained: TrainedModel | None = None

    def __repr__(self) -> str:
        words = round_in_words(self.metrics[-1]) if self.metrics else "nothing trained"
        kept = "" if self._temporary is not None else f", {self.folder.path}"
        return f"Run({len(self.metrics)} rounds: {words}{kept})"

    def _repr_html_(self) -> str:
        """The final figures as a table, which a notebook shows."""
        return run_as_html(self.metrics, None if self._temporary is not None else self.folder.path)

    def plot(self) -> "Figure":
        """Accuracy, loss and bytes by round, side by side, as a matplotlib figure; a notebook shows it."""
        from fsl.run.figures import plot  # matplotlib takes a while to import

        return plot(self.metrics, repr(self).partition(":")[0].removeprefix("Run("))

    @checks_types()
    def front(self, device: int) -> dict[str, Tensor]:
        """A device's private front; ConfigError if it has none."""
        return self.folder.front(device)

    @checks_types()
    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        device: int | None = None,
        overwrite: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the trained model into a folder, whole or not at all; returns the folder.

        `model.safetensors` has the unsplit model's keys, and loads in a program that has never heard of fsl;
        `fsl_config.json` says what it is, for `fsl.load_pretrained`. A model of Hugging Face's is saved by its own
        method, so that `from_pretrained(folder)` loads it.

        device: Private fronts: the one model of this device. Without it the folder has `back.safetensors`, and
            `fronts/<device>.safetensors` for each.
        overwrite: Replace what an earlier call wrote there; other files are never replaced.
        arguments: The arguments of the model's constructor (numbers, texts and lists), so that `fsl.load_pretrained`
            needs no object; fsl knows those of its own models.

        ConfigError for a folder that is taken and for arguments that make another model; RunError for a full disk.
        """
        return save_trained(self._known(), folder, device=device, overwrite=overwrite, arguments=arguments)

    @checks_types()
    def export(
        self,
        folder: str | os.PathLike[str],
        *,
        cut: str | Sequence[str] | None = None,
        device: int | None = None,
        formats: str | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write the trained segments as programs that run without fsl; returns what `manifest.json` says of them.

        Each program is compared with the module on rows of the data, and so are all in a row with the whole model;
        then the folder is there, or not at all.

        cut: Other modules to cut after than the run did, where all devices share one front.
        device: Private fronts: whose front.
        formats: "pt2" (torch.export), "onnx", or both; by default both, where the extra `export` is installed.
        overwrite: Replace what an earlier call wrote there; other files are never replaced.

        ConfigError, in one line, for a segment that cannot be exported; RunError where a program differs.
        """
        from fsl.export.exported_segments import export_trained  # torch.export takes a while to import

        return export_trained(self._known(), folder, cut=cut, device=device, formats=formats, overwrite=overwrite)

    def _known(self) -> TrainedModel:
        if self._trained is None:
            raise ConfigError("this Run was made by hand, without a model; fsl.simulate returns one that has it")
        return self._trained
