"""`fsl-search`: finds good values with Optuna; each trial is an ordinary run."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fsl.simulations.command_lines import Parser
from fsl.simulations.console_scripts import say_why
from fsl.simulations.endings import ctrl_c_stays_itself, interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from fsl.simulations.reports.measures import ALL_BYTES, BYTES, Measure
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, FslError
from fsl.quoting import shell_line
from fsl.run.config import read_config

if TYPE_CHECKING:
    from fsl.simulations.sweeps.study import Settings

_EPILOG = """
overrides are those of fsl-simulate; what has several values is searched:
  optimizer.lr='tag(log, interval(1e-4, 1e-1))'   a number between the two, on a logarithmic scale
  local_epochs='range(1, 4)'                      1, 2 or 3
  strategy.phi='choice(0, 0.25, 0.5)'             one of these, as is batch_size=8,16,32

go on with a study, or add trials to it: fsl-search --study FOLDER --trials 40
"""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    0: there is a best trial; 1: no trial ran to its end, or the search could not go on; 2: bad input; 130: Ctrl-C.
    """
    sys.argv = [sys.argv[0], *arguments]
    try:
        options = _parser().parse_intermixed_args(list(arguments))
    except ConfigError as error:
        return say_why("fsl-search", one_line(error), 2)
    folder = options.study or _new_folder()
    try:
        with sigterm_ends_like_ctrl_c(), ctrl_c_stays_itself():
            return _search(folder, options)
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        return say_why("fsl-search", "this needs Optuna, which is not installed; pip install 'fsl-flower[sweep]'", 2)
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say_why("fsl-search", f"{word}; go on with {_go_on(folder)}", code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why("fsl-search", one_line(error), 2)
    except (FslError, OSError) as error:
        return say_why("fsl-search", f"{one_line(error)}; go on with {_go_on(folder)}", 1)


def _search(folder: Path, options: argparse.Namespace) -> int:
    from fsl.simulations.sweeps.search_trials import Trials
    from fsl.simulations.sweeps.study import Study, alone_in, read_settings, write_settings  # Optuna is an extra

    for name in ("trials", "jobs"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: it must be at least 1")
    before = read_settings(folder)
    settings = _new_settings(options) if before is None else _same_settings(before, options, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        trials = Trials(Study(folder, settings), partial(say_why, "fsl-search"))
        write_settings(folder, settings)
        try:
            trials.run(settings.trials, options.jobs)
        finally:
            trials.write_table()  # of all trials so far, also after Ctrl-C
        return trials.summary()


def _new_settings(options: argparse.Namespace) -> "Settings":
    """Returns the settings of a new study; ConfigError for mistakes that show before the first trial."""
    from fsl.simulations.sweeps.search_space import read_space
    from fsl.simulations.sweeps.search_trial import composed
    from fsl.simulations.sweeps.study import Settings

    space = read_space(options.overrides)
    fixed = read_config(composed(space.fixed))
    metric = options.metric or "accuracy"
    sampler = options.sampler or "tpe"
    combinations = len(space.grid()) if sampler == "grid" else None
    return Settings(
        overrides=list(options.overrides),
        trials=options.trials or combinations or 20,
        metric=metric,
        best_round=bool(options.best_round),
        direction=options.direction or _direction(metric),
        sampler=sampler,
        pruner=options.pruner or "none",
        seed=fixed.training.seed,
    )


def _direction(metric: str) -> str:
    """Returns the better direction of a known metric; ConfigError for another."""
    if metric == ALL_BYTES:
        raise ConfigError(f"--metric {metric}: a search takes one column of metrics.jsonl; use {', '.join(BYTES)}")
    lower = Measure(metric).lower_is_better
    if lower is None:
        raise ConfigError(
            f"--metric {metric}: whether more of it is better is not known; add --direction maximize "
            "or --direction minimize"
        )
    return "minimize" if lower else "maximize"


def _same_settings(before: "Settings", options: argparse.Namespace, folder: Path) -> "Settings":
    """Returns the settings of the study that goes on, where only the number of trials may change."""
    for name in ("metric", "best_round", "direction", "sampler", "pruner"):
        then, now = getattr(before, name), getattr(options, name)
        if now is not None and now != then:
            raise ConfigError(
                f"--study {folder}: that study has {name} {then}, not {now}; leave it out, or start another"
            )
    if options.overrides and options.overrides != before.overrides:
        raise ConfigError(
            f"--study {folder}: that study has the overrides {shlex.join(before.overrides)}; leave them out, or start "
            "another study"
        )
    return replace(before, trials=options.trials or before.trials)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fsl-search",
        description="Find good values with Optuna. Each trial is an ordinary run in FOLDER/trial-<n>.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see below")
    parser.add_argument("--trials", type=int, help="how many there are to be in all (default: 20, or the whole grid)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time, a process each (default: 1)")
    parser.add_argument("--metric", help="a column of metrics.jsonl, of the last round (default: accuracy)")
    parser.add_argument("--best-round", action="store_true", default=None, help="score a trial by its best round")
    parser.add_argument(
        "--direction",
        choices=("maximize", "minimize"),
        help="default: maximize accuracies and other shares, minimize losses, errors, bytes, seconds and joules",
    )
    parser.add_argument("--sampler", choices=("tpe", "random", "grid"), help="how trials are drawn (default: tpe)")
    parser.add_argument("--pruner", choices=("none", "median"), help="what stops a bad trial early (default: none)")
    parser.add_argument("--study", type=Path, metavar="FOLDER", help="where the study is kept, or goes on")
    return parser


def _new_folder() -> Path:
    folder = Path("searches") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    return folder if not folder.exists() else folder.with_name(f"{folder.name}-{os.getpid()}")


def _go_on(folder: Path) -> str:
    return shell_line(["fsl-search", "--study", os.path.relpath(folder)])


def main() -> None:
    """Run the console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
