"""CycleSL: trains the back first, on resampled features; devices then get gradients from the updated back."""

from typing import Literal

from fsl.strategies.split_strategy import SplitStrategy

from fsl.errors import one_of
from fsl.importing.spec import Spec
from fsl.trainers import Cyclic


class CycleSL(SplitStrategy):
    """Trains the back on a window's uploads as a data set, `passes` times, before it answers them.

    `fronts`: "averaged" each round (the paper's CycleSFL) or "private" (CyclePSL). `window`: steps that devices upload
    before the back is trained on them. `batch_size`: rows of a resampled batch; None takes the devices' batch size.
    Source: Wang, Bozkir & Kasneci 2025, arXiv 2511.18611.
    """

    def __init__(
        self,
        passes: int = 1,
        window: int = 1,
        batch_size: int | None = None,
        fronts: Literal["averaged", "private"] = "averaged",
    ):
        super().__init__()
        Cyclic(passes=passes, window=window, batch_size=batch_size)  # raises for values that the edge would refuse
        self.passes = passes
        self.window = window
        self.batch_size = batch_size
        self.fronts = one_of("fronts", fronts, ("averaged", "private"))

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of one back for the cohort, trained before it answers."""
        options = {"passes": self.passes, "window": self.window, "batch_size": self.batch_size}
        return Spec(self.path(Cyclic), options)
