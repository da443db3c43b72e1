"""Federated split learning on Flower.

`strategies`, `configs` and `simulations` stand beside this folder in a source tree and inside it in a wheel. Their
import names are the same in both: `fsl.strategies`, `fsl.configs`, `fsl.simulations`.
"""

import os
from pathlib import Path

# Nothing is reported to anyone unless the user says so; Flower and Ray read these when they are imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_here = Path(__file__).parent
if not (_here / "strategies").is_dir():
    __path__.append(str(_here.parent))

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Imported on first use: torch and Flower take seconds, and `import fsl` should not.
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fsl' has no attribute '{name}'")


_PUBLIC = {
    "Backend": "fsl.run.backend",
    "Evaluation": "fsl.settings.evaluation_settings",
    "Hardware": "fsl.costs.hardware",
    "Observer": "fsl.run.observers",
    "Optimizer": "fsl.settings.optimizer_settings",
    "Run": "fsl.run.simulate",
    "Schedule": "fsl.settings.optimizer_settings",
    "StopRun": "fsl.run.observers",
    "Training": "fsl.settings.training_settings",
    "Wire": "fsl.settings.wire_settings",
    "simulate": "fsl.run.simulate",
}
