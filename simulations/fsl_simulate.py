"""`fsl-simulate`: simulates one run, or a sweep (`-m`), from the command line."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from fsl.simulations.console_scripts import run_script
from fsl.simulations.endings import (
    failure_in_words,
    interruption,
    literal_folders,
    may_go_on,
    resumed,
    sigterm_ends_like_ctrl_c,
    tell,
)
from fsl.simulations.error_lines import one_line, with_choices
from fsl.simulations.hydra_folder import Composed, Folders
from fsl.simulations.one_run import accuracy, check_resume, outcome_lines, say, simulate_config
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError
from fsl.run.run_folder import RunFolder


@dataclass
class _Outcome:
    """A job's message to the command, besides its return value."""

    folder: Path | None = None
    failure: Exception | None = None
    begun: bool = False


def _job(config: DictConfig, outcome: _Outcome) -> float | None:
    outcome.folder = Path(HydraConfig.get().runtime.output_dir)
    composed = Composed.by_hydra(config)
    try:
        run = simulate_config(config, outcome.folder, observers=[composed])
    except Exception as error:
        outcome.failure = error  # raised here, Hydra would print lines of its own
        if not isinstance(error, ConfigError):
            composed.keep(outcome.folder)
        return None
    finally:
        outcome.begun = composed.begun
    tell(outcome_lines(run.metrics, run.folder, figures=bool(config.figures)))
    return accuracy(run)


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    0; 1: it could not go on; 2: bad input; 130: Ctrl-C; 143: SIGTERM.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    logging.raiseExceptions = False  # an unwritable log is no reason to print pages
    from fsl.simulations.sweeps.hydra_sweep import in_order, is_sweep
    from fsl.simulations.sweeps.sweep import sweep  # it imports this module

    try:
        arguments = with_choices(literal_folders(in_order(arguments)))
    except ConfigError as error:
        return say(one_line(error), 2)
    sys.argv = [sys.argv[0], *arguments]
    with sigterm_ends_like_ctrl_c():
        return sweep(arguments) if is_sweep(arguments) else _single(arguments)


def _single(arguments: Sequence[str]) -> int:
    outcome, Folders.before = _Outcome(), None
    code = _ended(arguments, outcome)
    if code and not outcome.begun and Folders.before is not None:
        Folders.before.put_back(refused=code == 2)
    return code


def _ended(arguments: Sequence[str], outcome: _Outcome) -> int:

    def job(config: DictConfig) -> float | None:
        return _job(config, outcome)

    from fsl.simulations.sweeps.hydra_sweep import is_run, run_once

    try:
        _check_folders(arguments)
        if is_run(arguments):
            run_once(arguments, job)
        else:
            hydra.main(version_base="1.3", config_path="pkg://fsl.configs", config_name="config")(job)()
        if outcome.failure is not None:
            raise outcome.failure
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        folder = outcome.folder or _resumes(arguments)
        return say("; ".join(filter(None, (word, resumed(folder) or "no round was complete"))), code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say(one_line(error), 2)
    except Exception as error:
        if outcome.folder is None and isinstance(error, OSError):
            return say(f"the run's folder cannot be made ({one_line(error)}); choose another with hydra.run.dir=", 2)
        go_on = resumed(outcome.folder) if may_go_on(error) else ""
        return say("; ".join(filter(None, (failure_in_words(error), go_on))), 1)
    return 0


def _check_folders(arguments: Sequence[str]) -> None:
    """Refuse to resume a missing run, or to overwrite an existing one, before Hydra writes there."""
    given = _given(arguments)
    resume, folder = (given.get(key, "None") for key in ("resume", "hydra.run.dir"))
    if "$" in resume + folder:
        return  # a name that only Hydra resolves
    check_resume(None if resume == "None" else resume)
    run = RunFolder(Path(folder))
    if resume == "None" and run.is_used:
        run.refuse_if_used()


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """Returns a command line's values by key; empty for --help and the like, or where Hydra will refuse it."""
    if any(argument.startswith("-") for argument in arguments):
        return {}
    try:
        overrides = OverridesParser.create().parse_overrides(list(arguments))
    except HydraException:
        return {}
    return {one.key_or_group: str(one.value()) for one in overrides if not one.is_sweep_override()}


def _resumes(arguments: Sequence[str]) -> Path | None:
    """Returns the run that a command resumes, where it failed before composing."""
    resume = _given(arguments).get("resume", "None")
    return None if resume == "None" or "$" in resume else Path(resume)


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
