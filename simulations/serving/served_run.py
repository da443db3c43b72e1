"""A finished run's model, at the points where it is served."""

from collections.abc import Sequence

from fsl.simulations.fsl_export import TrainedRun, read_trained_run
from fsl.simulations.profiling.int8_model import in_int8, read_int8
from fsl.simulations.serving.serve_options import ServeOptions

from fsl.inference import SplitPoints

MODEL_OPTIONS = ("run", "points", "front", "int8")
ALL = "all"


def served_run(options: ServeOptions, usual: Sequence[str] | None = None) -> tuple[TrainedRun, SplitPoints]:
    """Read the run that options name, and divide its model: at the `usual` points, unless they name others.

    `usual` None: the run's own cuts. ConfigError, or SplitError for a point that the model does not have.
    """
    run = read_trained_run(options.path("run"))
    trained = run.trained
    points = options.texts("points") or list(trained.cuts if usual is None else usual)
    example = trained.inputs().rows
    model = trained.whole(options.whole("front", None))
    model = in_int8(model, trained, run.data, read_int8(options.text("int8", "false")))
    return run, SplitPoints(model, example, None if ALL in points else points)
