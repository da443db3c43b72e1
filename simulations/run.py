"""`fsl-simulate`: one run, or a sweep (`-m`), from the command line."""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from fsl.simulations.endings import (
    failure_in_words,
    interruption,
    literal_folders,
    may_go_on,
    ray_ends_like_ctrl_c,
    resumed,
    sigterm_ends_like_ctrl_c,
    tell,
)
from fsl.simulations.hydra_folder import Composed, Folders
from fsl.simulations.messages import one_line, with_choices
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fsl.backend import Backend
from fsl.codecs.choice import build_codecs
from fsl.config import (
    RunConfig,
    build,
    build_aggregator,
    build_backend,
    build_data,
    build_mobility,
    build_model,
    build_objective,
    build_optimizer,
    build_privacy,
    build_trackers,
    read_config,
)
from fsl.data import TaskData
from fsl.deployment.closing import refuse_without_nodes
from fsl.deployment.members import build_terms
from fsl.errors import ConfigError
from fsl.faults import traced
from fsl.federation import CloudStrategy
from fsl.observers import Figures, Observer, ProgressBar, RoundLines
from fsl.quoting import override_value, shell_line
from fsl.run import Run, simulate
from fsl.runfolder import RunFolder
from fsl.runlog import noted_in_log
from fsl.trackers import TensorBoard


def run_folder(resume: str | None) -> str:
    """The folder of this run: the one that goes on, or a new one named by the time."""
    if resume is not None:
        return str(resume)
    folder = Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}"
    return str(folder if not folder.exists() else folder.with_name(f"{folder.name}-{os.getpid()}"))


OmegaConf.register_new_resolver("fsl.run_folder", run_folder, replace=True, use_cache=True)


def simulate_config(
    config: DictConfig,
    folder: Path,
    progress: bool = True,
    observers: Sequence[Observer] = (),
    backend_of: Callable[[RunConfig, TaskData], Backend] | None = None,
    strategy: CloudStrategy | None = None,
    title: str = "",
) -> Run:
    """Run what a composed configuration says, into this folder; `observers` watch it beside the usual ones.

    `backend_of` makes the backend for runs that are no simulation; `strategy` takes the place of the configuration's;
    `title` goes before each line about a round, where several runs print side by side.
    """
    with ray_ends_like_ctrl_c(), traced(folder), noted_in_log(folder):
        watching = (*_shown(progress, title), TensorBoard(), *build_trackers(read_config(config).trackers))
        # The last is told first of the end: trackers then find the figures drawn.
        return _simulate(config, folder, (*watching, Figures(), *observers), backend_of, strategy)


def _simulate(
    config: DictConfig,
    folder: Path,
    observers: Sequence[Observer],
    backend_of: Callable[[RunConfig, TaskData], Backend] | None,
    strategy: CloudStrategy | None,
) -> Run:
    top = read_config(config)
    data, augmentation = build_data(top.data, top.seed)
    objective = build_objective(top.objective)
    model, cut = build_model(top.model, data, top.seed, objective)
    partition, codecs = build("partition", top.partition), build_codecs(top.codec)
    check_resume(top.resume)
    terms = build_terms(top.deployment)  # of no use to a simulation, but a wrong key is one
    if backend_of is None:
        refuse_without_nodes(**terms.closing)
    return simulate(
        model,
        data,
        strategy=strategy or build("strategy", top.strategy),
        cut=cut,
        devices=top.devices,
        rounds=top.rounds,
        partition=partition,
        samples_per_device=top.samples_per_device,
        objective=objective,
        optimizer=build_optimizer(top.optimizer),
        augmentation=augmentation,
        edges=top.edges,
        devices_per_round=top.devices_per_round,
        local_epochs=top.local_epochs,
        batch_size=top.batch_size,
        up=codecs["up"],
        down=codecs["down"],
        aggregator=build_aggregator(top.aggregator),
        seed=top.seed,
        init_from=top.init_from,
        evaluate_every=top.evaluate_every,
        evaluate_devices=top.evaluate_devices,
        evaluate_leakage=top.evaluate_leakage,
        nodes=top.nodes,
        device_profile=build("device", top.device),
        edge_profile=build("edge", top.edge),
        link_profile=build("link", top.link),
        mobility=build_mobility(top.mobility),
        privacy=build_privacy(top.privacy),
        backhaul_profile=build("backhaul", top.backhaul),
        backend=build_backend(top.backend) if backend_of is None else backend_of(top, data),
        out=folder,
        allowed=top.allowed,
        resume=top.resume is not None,
        name=None if top.name is None else str(top.name),
        tags=top.tags,
        progress=False,
        observers=observers,
    )


def _shown(progress: bool, title: str) -> list[Observer]:
    """A bar for who watches on a terminal; lines for who reads them later, in a job's output."""
    if sys.stderr is not None and sys.stderr.isatty():
        return [ProgressBar()] if progress else []
    return [RoundLines(lambda line: tell(f"{title}: {line}" if title else line))]


def check_resume(resume: str | None) -> None:
    """Refuse what is not the folder of a run to go on with."""
    if resume is not None and not str(resume).strip():
        raise ConfigError(f"resume={resume!r}: it names no folder; give that of an earlier run, or leave it out")
    if resume is not None and not Path(resume).is_dir():
        raise ConfigError(f"resume={resume}: there is no such folder; give the folder of an earlier run")
    if resume is not None and (Path(resume) / "multirun.yaml").exists():
        go_on = shell_line(["fsl-simulate", "-m", f"resume={override_value(resume)}"])
        raise ConfigError(f"resume={resume}: that is a sweep; {go_on} goes on with it")


@dataclass
class _Outcome:
    """What a job tells the command beside its return value."""

    folder: Path | None = None
    failure: Exception | None = None
    begun: bool = False


def _job(config: DictConfig, outcome: _Outcome) -> float | None:
    outcome.folder = Path(HydraConfig.get().runtime.output_dir)
    composed = Composed.by_hydra(config)
    try:
        run = simulate_config(config, outcome.folder, observers=[composed])
    except Exception as error:
        outcome.failure = error  # raised in here, Hydra would print lines of its own
        if not isinstance(error, ConfigError):
            composed.keep(outcome.folder)
        return None
    finally:
        outcome.begun = composed.begun
    tell(outcome_lines(run.metrics, run.folder))
    return accuracy(run)


def outcome_lines(metrics: Sequence[Mapping[str, Any]], folder: RunFolder) -> str:
    """What a run came to, and where it lies: the lines that end a run."""
    return f"{scores(metrics)}\nresults: {_short(folder.path)}\nfigures: {_short(folder.figures)}"


def scores(metrics: Sequence[Mapping[str, Any]]) -> str:
    """What the last round came to, in words."""
    last = metrics[-1] if metrics else {}
    return ", ".join(
        f"{name} {last[name]:.4f}" for name in ("train_loss", "loss", "accuracy") if last.get(name) is not None
    )


def accuracy(run: Run) -> float | None:
    """The last round's accuracy, None where nothing was evaluated."""
    return run.metrics[-1].get("accuracy") if run.metrics else None


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    0; 1: it could not go on; 2: bad input; 130: Ctrl-C; 143: SIGTERM.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    logging.raiseExceptions = False  # a log that cannot be written is no reason to print pages
    from fsl.simulations.hydra_sweep import in_order, is_sweep
    from fsl.simulations.sweep import sweep  # which imports this module

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

    @hydra.main(version_base="1.3", config_path="pkg://fsl.configs", config_name="config")
    def job(config: DictConfig) -> float | None:
        return _job(config, outcome)

    try:
        _check_folders(arguments)
        job()
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
    """Refuse a run to go on with that is not there, and a folder that has one, before Hydra writes there."""
    given = _given(arguments)
    resume, folder = (given.get(key, "None") for key in ("resume", "hydra.run.dir"))
    if "$" in resume + folder:
        return  # a name that is not known yet
    check_resume(None if resume == "None" else resume)
    run = RunFolder(Path(folder))
    if resume == "None" and run.is_used:
        run.refuse_if_used()


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """The values of a command line by key; none where it asks for --help and the like, or Hydra is to refuse it."""
    if any(argument.startswith("-") for argument in arguments):
        return {}
    try:
        overrides = OverridesParser.create().parse_overrides(list(arguments))
    except HydraException:
        return {}
    return {one.key_or_group: str(one.value()) for one in overrides if not one.is_sweep_override()}


def _resumes(arguments: Sequence[str]) -> Path | None:
    """The run that a command goes on with, where it ended before it was composed."""
    resume = _given(arguments).get("resume", "None")
    return None if resume == "None" or "$" in resume else Path(resume)


def say(line: str, code: int) -> int:
    """One line on stderr; returns the exit code that goes with it."""
    with suppress(OSError, ValueError):  # nobody may be there to read it
        print(f"fsl-simulate: {line}", file=sys.stderr, flush=True)
    return code


def _short(path: Path) -> str:
    return os.path.relpath(path)


def main() -> None:
    """The console script."""
    sys.path.append(os.getcwd())  # at the end: a strategy of one's own lies here, and shadows nothing
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
