"""The trained model of a demonstration: that of a run, or a small one that is trained first; with early exits."""

import copy
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from fsl.simulations.endings import TerminatedError, tell
from fsl.simulations.fsl_export import TrainedRun, read_trained_run
from fsl.simulations.fsl_simulate import command as simulate

from fsl.data import Examples
from fsl.errors import ConfigError, RunError
from fsl.inference import SplitPoints
from fsl.inference.exits import ExitModel, load_exits, save_exits, train_exits
from fsl.inference.exits.exit_folder import FOLDER as EXITS_FOLDER
from fsl.inference.serving import DeviceExits
from fsl.quoting import override_value

_TRAINING = ("model=lenet", "data=digits", "strategy=splitfed_v1", "devices=2", "rounds=8")
_EXITS = {"pool1": "mlp", "pool2": "mlp"}
_EPOCHS = 15
_THRESHOLD = 0.9  # confidence from which rows leave
_ENDED = {130: KeyboardInterrupt, 143: TerminatedError}  # by exit codes


@dataclass(frozen=True)
class DemoModel:
    """A run, and its folder."""

    folder: Path
    run: TrainedRun

    @property
    def examples(self) -> Examples:
        """What devices ask: the test set, or else the training set."""
        return (self.run.data.train if self.run.data.test is None else self.run.data.test).of_one_length()

    def points(self, named: str) -> SplitPoints:
        """Returns a copy of the model at these points: names with commas between them, or all."""
        names = None if named == "all" else [name.strip() for name in named.split(",")]
        return SplitPoints(self.run.trained.whole(None), self.run.trained.inputs().rows, names)

    def exits(self, points: SplitPoints) -> DeviceExits:
        """Returns a copy of the exits that the run's folder has; where it has none, some at its cuts, just trained."""
        backbone = copy.deepcopy(points.model)
        if (self.folder / EXITS_FOLDER).is_dir():
            saved = load_exits(self.folder, backbone=backbone)
            thresholds = _THRESHOLD if saved.thresholds is None else saved.thresholds
            return DeviceExits(saved.model, thresholds)
        return DeviceExits(self.trained_exits(dict.fromkeys(self.run.trained.cuts, "mlp"), backbone), _THRESHOLD)

    def trained_exits(self, heads: dict[str, str], backbone: torch.nn.Module) -> ExitModel:
        """Train exits on the frozen model."""
        tell(f"training exits at {', '.join(heads)}")
        model = ExitModel(backbone, heads, self.run.trained.inputs().rows)
        train_exits(model, self.run.data, objective=self.run.objective, epochs=_EPOCHS)
        return model


def demo_model(folder: Path) -> DemoModel:
    """Read a finished run, or train one where there is none yet; it takes some seconds.

    It is trained beside and moved there when it is done: what an interruption leaves is no run.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run={folder}: it is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        _train(folder)
    return DemoModel(folder, read_trained_run(folder))


def _train(folder: Path) -> None:
    tell(f"{folder} has no run yet: training a LeNet on digits")
    beside = folder.with_name(f".{folder.name}.training")
    shutil.rmtree(beside, ignore_errors=True)
    code = simulate([*_TRAINING, f"hydra.run.dir={override_value(str(beside))}"])
    if code in _ENDED:
        raise _ENDED[code]
    if code:
        raise RunError(f"run={folder}: the model was not trained, see above")
    made = DemoModel(beside, read_trained_run(beside))
    model = made.trained_exits(_EXITS, made.run.trained.whole(None))
    save_exits(beside, model, thresholds=_THRESHOLD)
    folder.parent.mkdir(parents=True, exist_ok=True)
    os.replace(beside, folder)
