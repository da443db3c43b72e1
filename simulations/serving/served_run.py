"""A finished run's model, at the points where it is served."""

from collections.abc import Sequence

from fsl.simulations.fsl_export import TrainedRun, read_trained_run
from fsl.simulations.serving.serve_options import ServeOptions

from fsl.inference import SplitPoints

MODEL_OPTIONS = ("run", "points", "front")
ALL = "all"


def served_run(options: ServeOptions, usual: Sequence[str] | None = None) -> tuple[TrainedRun, SplitPoints]:
    """Read the run that options name, and divide its model: at the `usual` points, unless they name others.

    `usual` None: the run's own cuts. ConfigError, or SplitError for a point that the model does not have.
    """
    run = read_trained_run(options.path("run"))
    trained = run.trained
    points = options.texts("points") or list(trained.cuts if usual is None else usual)
    example = trained.inputs().rows
    return run, SplitPoints(trained.whole(options.whole("front", None)), example, None if ALL in points else points)
