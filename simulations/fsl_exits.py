"""`fsl-exits`: trains early exits on a finished run's model, which stays as it is, and chooses when rows leave."""

import os
from collections.abc import Sequence

import torch
from fsl.simulations.console import print_table
from fsl.simulations.console_scripts import run_command, run_script
from fsl.simulations.endings import tell
from fsl.simulations.exiting.exit_options import ExitOptions, read_exit_options
from fsl.simulations.fsl_export import TrainedRun, read_trained_run
from fsl.simulations.profiling.profiled_model import whole_of
from fsl.simulations.reports.tables import Table

from fsl.errors import ConfigError
from fsl.inference.exits import (
    Distillation,
    ExitModel,
    ExitOutputs,
    Thresholds,
    collect_outputs,
    save_exits,
    train_exits,
    train_predictors,
)
from fsl.inference.exits.leaving import NEVER, leaving_confidence, rows_for_heads
from fsl.objective import CrossEntropy, Segmentation, TokenClassification
from fsl.split.coded_model import CodedModel

_USAGE = """usage: fsl-exits run=FOLDER exits=POINT:HEAD[:WIDTH][,...] [option=value ...]

Train early exits on the model of a finished run of fsl-simulate. The model stays as it is, to the bit; heads learn from
the run's training rows, and the confidence from which rows leave is chosen on rows that they have not seen.

  exits=pool1:mlp,pool2:conv:16   points of the model (fsl-profile lists them) and heads: linear, mlp, conv, sl_vit
  distillation=0.5     the share of the loss by which heads learn from the model's own outputs, at temperature=1
  epochs=10 batch_size=32 learning_rate=0.001   of heads
  eta=0.3              predictors in front of heads, trained on rows that heads have not seen: rows that leave less
                       likely bypass a head, which pays where it is heavy
  confidence=entropy   default: max_softmax
  within=0.01          accuracy that may be lost for fewer multiply-adds; threshold=0.9: from which rows leave.
                       Where nothing is saved within that, nobody leaves
  front=3              of this device, where each has its own
  out=FOLDER           default: the run's folder; exits go to its exits/, overwrite=true replaces them

fsl-serve device exits=FOLDER and fsl-compare-inference exits=FOLDER use them."""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code of `run_command`."""
    return run_command("fsl-exits", _USAGE, arguments, lambda given: _run(read_exit_options(given)))


def _run(options: ExitOptions) -> None:
    run = read_trained_run(options.run)
    whole = whole_of(run.trained, options.front, f"run={options.run}")
    if isinstance(whole, CodedModel):
        raise ConfigError(f"run={options.run}: its model has a trained codec at its cut, and exits on it are not built")
    many = isinstance(run.objective, Segmentation | TokenClassification)  # classes a row
    if many or not isinstance(run.objective, CrossEntropy):
        raise ConfigError(
            f"run={options.run}: it was trained for {type(run.objective).__name__}, and these exits are of classes, "
            "one a row, whose confidence says when rows leave; make others with fsl.inference.exits.ExitModel"
        )
    train, held = rows_for_heads(run.data, options.seed)
    model = ExitModel(
        whole, options.exits, run.trained.inputs().three, confidence=options.confidence, seed=options.seed
    )
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"out={options.out}: it is a file; give a folder")
    if not options.overwrite and (options.out / "exits").exists():
        raise ConfigError(f"{options.out / 'exits'} exists; give overwrite=true, or another out=FOLDER")
    told = Distillation(options.distillation, options.temperature) if options.distillation else None
    train_exits(
        model,
        train,
        objective=run.objective,
        distillation=told,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    beta = options.threshold
    if beta is None:
        beta = leaving_confidence(collect_outputs(model, held, objective=run.objective), model, options.within)
    count, pays = len(model.exits), beta != NEVER
    thresholds = Thresholds((beta,) * count, (options.eta if pays else 0.0,) * count)
    if options.eta and pays:
        train_predictors(model, held, beta, epochs=options.epochs, seed=options.seed)
    rows = (run.data.test or held).of_one_length()
    for line in _about(options, run, pays, len(held), len(rows)):
        tell(line)
    print_table(_table(collect_outputs(model, rows, objective=run.objective), model, thresholds), "", "")
    where = save_exits(options.out, model, thresholds=thresholds, overwrite=options.overwrite)
    tell(f"exits: {os.path.relpath(where)}")


def _about(options: ExitOptions, run: TrainedRun, pays: bool, held: int, rows: int) -> list[str]:
    """Returns what is to be known of rows, and of exits that do not pay."""
    kind = (
        "training rows, which the model has seen and heads have not"
        if run.data.validation is None
        else "validation rows"
    )
    chosen = options.threshold is None or options.eta > 0
    lines = [f"when rows leave: by {held} {kind}"] if chosen else []
    lines.append(
        f"table: {rows} test rows" if run.data.test else f"table: the same {rows} rows, since the run has no test rows"
    )
    if not pays:
        without = "; predictors were not trained" if options.eta else ""
        lines.append(f"no confidence saves multiply-adds within {options.within:g} of accuracy: nobody leaves{without}")
    return lines


def _table(outputs: ExitOutputs, model: ExitModel, thresholds: Thresholds) -> Table:
    replay, means = outputs.replay(thresholds), outputs.means()
    left = torch.bincount(replay.exits, minlength=len(means)).double() / len(replay.exits)
    lines, below = [], 0.0
    for k, name in enumerate((*model.exits, "output")):
        below += model.costs.stages[k]
        head = model.costs.heads[k] if k < len(model.exits) else 0.0
        lines.append(
            (name, f"{below / 1e6:.3f}", f"{head / 1e6:.3f}", f"{means[k]:.4f}", f"{100 * float(left[k]):.1f} %")
        )
    cost = float(replay.cost(model.costs).mean())
    lines.append(
        (
            "nobody leaves" if thresholds.beta[0] == NEVER else f"by confidence {thresholds.beta[0]:g}",
            f"{cost / 1e6:.3f}",
            "",
            f"{replay.quality(outputs):.4f}",
            "100 %",
        )
    )
    return Table(("exit", "MMAC until there", "head", "accuracy", "leave"), tuple(lines))


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
