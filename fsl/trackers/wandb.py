"""Weights & Biases, an extra: `pip install 'fsl-flower[wandb]'`."""

import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from fsl.run.observers import RunInfo
from fsl.run.run_folder import RunFolder
from fsl.trackers.tracker import Tracker, remember, remembered, require, run_name

if TYPE_CHECKING:
    from wandb import Run


class WandB(Tracker):
    """The run in Weights & Biases: settings, each round's numbers, and the figures at the end.

    `mode="offline"` keeps everything in `wandb/` of the run's folder, for `wandb sync`; only "online" sends it. A
    resumed run has the same W&B id. ConfigError where wandb is not installed.
    """

    title: ClassVar[str] = "Weights & Biases"
    _run: "Run"

    def __init__(
        self,
        project: str = "fsl",
        mode: Literal["offline", "online"] = "offline",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
    ):
        super().__init__()
        require("wandb", "Weights & Biases", "wandb")
        self.project, self.mode, self.entity, self.name, self.group = project, mode, entity, name, group

    def open(self, info: RunInfo) -> None:
        """Begin a W&B run, or go on with it."""
        assert info.folder is not None
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would report its own errors, offline too
        import wandb

        id = remembered(info, "wandb") or secrets.token_hex(4)
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name or run_name(info.folder),
            group=self.group,
            id=id,
            resume="allow",  # offline each start writes a part of its own, and `wandb sync` joins them
            dir=str(info.folder),
            mode=self.mode,
            config=dict(info.settings),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="round")
        remember(info, "wandb", id)

    def log(self, round: int, numbers: Mapping[str, float]) -> None:
        """Add a round."""
        self._run.log({"round": round, **numbers})

    def close(self, info: RunInfo, complete: bool) -> None:
        """Add the figures, and end the W&B run."""
        import wandb

        assert info.folder is not None
        try:
            figures = sorted(RunFolder(info.folder).figures.glob("*.png"))
            if figures:
                self._run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        finally:
            self._run.finish(exit_code=0 if complete else 1)
