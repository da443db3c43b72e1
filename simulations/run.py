"""`fsl-simulate`: one run, or a sweep (`-m`), from the command line."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from fsl.simulations.messages import check_choices, one_line
from hydra.core.hydra_config import HydraConfig
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
from fsl.deployment.members import build_terms
from fsl.errors import ConfigError, FslError
from fsl.federation import CloudStrategy
from fsl.observers import Figures, Observer
from fsl.run import Run, simulate
from fsl.runfolder import RunFolder
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
) -> Run:
    """Run what a composed configuration says, into this folder; `observers` watch it beside the usual ones.

    `backend_of` makes the backend for runs that are no simulation; `strategy` takes the place of the configuration's.
    """
    top = read_config(config)
    data, augmentation = build_data(top.data, top.seed)
    objective = build_objective(top.objective)
    model, cut = build_model(top.model, data, top.seed, objective)
    partition = build("partition", top.partition)
    check_resume(top.resume)
    build_terms(top.deployment)  # of no use to a simulation, but a wrong key is one
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
        **build_codecs(top.codec),
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
        resume=top.resume is not None,
        name=None if top.name is None else str(top.name),
        tags=top.tags,
        progress=progress,
        # The last is told first of the end: trackers then find the figures drawn.
        observers=(
            TensorBoard(),
            *build_trackers(top.trackers),
            Figures(),
            *observers,
        ),
    )


def check_resume(resume: str | None) -> None:
    """Refuse what is not the folder of a run to go on with."""
    if resume is not None and not Path(resume).is_dir():
        raise ConfigError(f"resume={resume}: there is no such folder; give the folder of an earlier run")
    if resume is not None and (Path(resume) / "multirun.yaml").exists():
        raise ConfigError(f"resume={resume}: that is a sweep; fsl-simulate -m resume={resume} goes on with it")


@dataclass
class _Outcome:
    """What a job tells the command beside its return value."""

    folder: Path | None = None
    failure: FslError | OSError | None = None


def _job(config: DictConfig, outcome: _Outcome) -> float | None:
    outcome.folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        run = simulate_config(config, outcome.folder)
    except (FslError, OSError) as error:
        outcome.failure = error  # raised in here, Hydra would print lines of its own
        return None
    print(outcome_lines(run.metrics, run.folder))
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
    """Run the command line; returns the exit code: 0, 1 (could not go on), 2 (bad input) or 130 (Ctrl-C)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and leaving
    sys.argv = [sys.argv[0], *arguments]
    from fsl.simulations.sweep import is_sweep, sweep  # which imports this module

    if is_sweep(arguments):
        return sweep(arguments)
    outcome = _Outcome()

    @hydra.main(version_base="1.3", config_path="pkg://fsl.configs", config_name="config")
    def job(config: DictConfig) -> float | None:
        return _job(config, outcome)

    try:
        check_choices(arguments)
        job()
        if outcome.failure is not None:
            raise outcome.failure
    except KeyboardInterrupt:
        return say(f"interrupted; go on with {_resume(outcome)}", 130)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say(one_line(error), 2)
    except (FslError, OSError) as error:
        return say(f"{one_line(error)}; go on with {_resume(outcome)}", 1)
    return 0


def say(line: str, code: int) -> int:
    """One line on stderr; returns the exit code that goes with it."""
    print(f"fsl-simulate: {line}", file=sys.stderr)
    return code


def _resume(outcome: _Outcome) -> str:
    return f"resume={_short(outcome.folder) if outcome.folder else '<folder>'}, and the same options"


def _short(path: Path) -> str:
    return os.path.relpath(path)


def main() -> None:
    """The console script."""
    sys.path.append(os.getcwd())  # at the end: a strategy of one's own lies here, and shadows nothing
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
