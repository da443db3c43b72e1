"""Exits that were saved for a run's model, on a device that asks."""

import copy

from fsl.simulations.serving.serve_options import ServeOptions

from fsl.errors import ConfigError
from fsl.inference import SplitPoints
from fsl.inference.exits import load_exits
from fsl.inference.exits.exit_thresholds import Given
from fsl.inference.serving import DeviceExits


def served_exits(options: ServeOptions, points: SplitPoints) -> DeviceExits | None:
    """Read the exits that options name, None where they name none; ConfigError for those of another model."""
    if not options.has("exits"):
        if options.has("threshold"):
            raise ConfigError("threshold: rows leave by exits; name the folder that has them, as in exits=FOLDER")
        return None
    saved = load_exits(options.path("exits"), backbone=copy.deepcopy(points.model))
    threshold = options.number("threshold", None, zero=True)
    thresholds: Given | None = saved.thresholds if threshold is None else threshold
    if thresholds is None:
        raise ConfigError("threshold must be given, as in threshold=0.9: the exits were saved without")
    return DeviceExits(saved.model, thresholds)
