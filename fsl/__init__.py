"""Federated split learning on Flower.

    import fsl

    run = fsl.simulate(model, train_data, test_data=test_data, strategy="splitfed_v1", cut="features.4")
    print(run.metrics[-1]["accuracy"])

`fsl.simulate` trains a split model over simulated devices; `fsl.split` and `fsl.join` cut a model and put it together
again; `fsl.price` predicts what a round costs at every cut. The rest of `__all__` is what these take and return, and
the rooms with things to choose from or to derive from: `fsl.strategies`, `fsl.trainers`, `fsl.codecs`, `fsl.data`, ...

`import fsl` takes milliseconds: a name is imported when it is first used, since torch and Flower take seconds.

`strategies`, `configs` and `simulations` stand beside this folder in a source tree and inside it in a wheel. Their
import names are the same in both: `fsl.strategies`, `fsl.configs`, `fsl.simulations`.
"""

import os
import sys
from typing import TYPE_CHECKING

from fsl.installed import HOME as _HOME
from fsl.installed import TOP as _TOP
from fsl.installed import __version__ as __version__

# Nothing is reported to anyone unless the user says so; Flower and Ray read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

if _TOP != _HOME:
    __path__.append(str(_TOP))

if TYPE_CHECKING:  # for type checkers and editors; `_WHERE` says the same to Python, and a test compares them
    from fsl import attacks as attacks
    from fsl import availability as availability
    from fsl import codecs as codecs
    from fsl import costs as costs
    from fsl import data as data
    from fsl import device as device
    from fsl import errors as errors
    from fsl import metrics as metrics
    from fsl import mobility as mobility
    from fsl import models as models
    from fsl import objective as objective
    from fsl import privacy as privacy
    from fsl import seeds as seeds
    from fsl import selection as selection
    from fsl import strategies as strategies
    from fsl import trackers as trackers
    from fsl import trainers as trainers
    from fsl.costs.hardware import Hardware as Hardware
    from fsl.costs.pricing import CutPrice as CutPrice
    from fsl.costs.pricing import price as price
    from fsl.deployment.local.local_federation import LocalFederation as LocalFederation
    from fsl.export.pretrained import load_pretrained as load_pretrained
    from fsl.importing.spec import Spec as Spec
    from fsl.inference.exits.exit_choice import Exits as Exits
    from fsl.messages.reports import DeviceReport as DeviceReport
    from fsl.models.lora import Lora as Lora
    from fsl.models.lora import lora as lora
    from fsl.models.lora import merged as merged
    from fsl.models.lora import save_adapter as save_adapter
    from fsl.models.low_rank import LowRank as LowRank
    from fsl.models.low_rank import low_rank as low_rank
    from fsl.models.vertical_model import VerticalModel as VerticalModel
    from fsl.privacy.settings import Privacy as Privacy
    from fsl.run.backend import Backend as Backend
    from fsl.run.finished_run import Run as Run
    from fsl.run.observers import Observer as Observer
    from fsl.run.observers import RunInfo as RunInfo
    from fsl.run.observers import StopRun as StopRun
    from fsl.run.simulate import simulate as simulate
    from fsl.segments.learning_rate import Schedule as Schedule
    from fsl.settings.early_stop import EarlyStop as EarlyStop
    from fsl.settings.evaluation_settings import Evaluation as Evaluation
    from fsl.settings.optimizer_settings import Optimizer as Optimizer
    from fsl.settings.training_settings import Training as Training
    from fsl.settings.wire_settings import Wire as Wire
    from fsl.split.cutting import SplitModel as SplitModel
    from fsl.split.cutting import join as join
    from fsl.split.cutting import possible_cuts as possible_cuts
    from fsl.split.cutting import split as split

__all__ = [
    "Backend",
    "CutPrice",
    "DeviceReport",
    "EarlyStop",
    "Evaluation",
    "Exits",
    "Hardware",
    "LocalFederation",
    "Lora",
    "LowRank",
    "Observer",
    "Optimizer",
    "Privacy",
    "Run",
    "RunInfo",
    "Schedule",
    "Spec",
    "SplitModel",
    "StopRun",
    "Training",
    "VerticalModel",
    "Wire",
    "attacks",
    "availability",
    "codecs",
    "costs",
    "data",
    "device",
    "errors",
    "join",
    "load_pretrained",
    "lora",
    "low_rank",
    "merged",
    "metrics",
    "mobility",
    "models",
    "objective",
    "possible_cuts",
    "price",
    "privacy",
    "save_adapter",
    "seeds",
    "selection",
    "simulate",
    "split",
    "strategies",
    "trackers",
    "trainers",
]

# The module that each name stands in. A name of `__all__` that is not here is a module itself; `split` is both, a
# module that can be called (fsl/split/__init__.py).
_WHERE = {
    "Backend": "fsl.run.backend",
    "CutPrice": "fsl.costs.pricing",
    "DeviceReport": "fsl.messages.reports",
    "EarlyStop": "fsl.settings.early_stop",
    "Evaluation": "fsl.settings.evaluation_settings",
    "Exits": "fsl.inference.exits.exit_choice",
    "Hardware": "fsl.costs.hardware",
    "LocalFederation": "fsl.deployment.local.local_federation",
    "Lora": "fsl.models.lora",
    "LowRank": "fsl.models.low_rank",
    "Observer": "fsl.run.observers",
    "Optimizer": "fsl.settings.optimizer_settings",
    "Privacy": "fsl.privacy.settings",
    "Run": "fsl.run.finished_run",
    "RunInfo": "fsl.run.observers",
    "Schedule": "fsl.segments.learning_rate",
    "Spec": "fsl.importing.spec",
    "SplitModel": "fsl.split.cutting",
    "StopRun": "fsl.run.observers",
    "Training": "fsl.settings.training_settings",
    "VerticalModel": "fsl.models.vertical_model",
    "Wire": "fsl.settings.wire_settings",
    "lora": "fsl.models.lora",
    "low_rank": "fsl.models.low_rank",
    "merged": "fsl.models.lora",
    "save_adapter": "fsl.models.lora",
    "join": "fsl.split.cutting",
    "load_pretrained": "fsl.export.pretrained",
    "possible_cuts": "fsl.split.cutting",
    "price": "fsl.costs.pricing",
    "simulate": "fsl.run.simulate",
}

if not TYPE_CHECKING:  # a type checker must not take a name that is misspelt for one that this function knows

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        from importlib import import_module

        if name in _WHERE:
            return getattr(import_module(_WHERE[name]), name)
        if name in __all__:
            return import_module(f"fsl.{name}")
        raise AttributeError(f"module 'fsl' has no attribute '{name}'", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    """List the public names, which is what `fsl.<TAB>` shows."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
