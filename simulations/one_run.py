"""Runs one composed configuration, and describes its results in words."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from fsl.simulations.endings import ray_ends_like_ctrl_c, tell
from omegaconf import DictConfig, OmegaConf

from fsl.data import TaskData
from fsl.deployment.cloud.closing import refuse_without_nodes
from fsl.deployment.cloud.terms import build_terms
from fsl.errors import ConfigError
from fsl.faults import traced
from fsl.importing.building import build
from fsl.quoting import override_value, shell_line
from fsl.run.backend import Backend
from fsl.run.config import (
    RunConfig,
    build_aggregator,
    build_availability,
    build_backend,
    build_cuts,
    build_data,
    build_hardware,
    build_memory,
    build_mobility,
    build_model,
    build_objective,
    build_optimizer,
    build_places,
    build_privacy,
    build_selection,
    build_stop,
    build_trackers,
    build_wire,
    load_data,
    read_config,
)
from fsl.run.exit_config import build_exits
from fsl.run.finished_run import Run
from fsl.run.observers import Figures, Observer, ProgressBar, RoundLines
from fsl.run.run_folder import RunFolder
from fsl.run.run_log import noted_in_log
from fsl.run.simulate import simulate
from fsl.settings.federation_settings import CloudStrategy
from fsl.spans.trace_files import read_summary
from fsl.trackers import TensorBoard


def run_folder(resume: str | None) -> str:
    """Returns the folder of this run: the resumed run's, or a new one named by the time."""
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
    load: Callable[[Mapping[str, Any]], TaskData] = load_data,
) -> Run:
    """Run a composed configuration into this folder; `observers` watch it besides the usual ones.

    `backend_of` makes the backend of runs that are no simulation, and whose every round is told; `strategy` replaces
    the configuration's; `title` goes before each line about a round, where several runs print side by side; `load`
    loads the data, which runs in one process may share.
    """
    with ray_ends_like_ctrl_c(), traced(folder), noted_in_log(folder):
        shown = _shown(progress, title) if backend_of is None else [RoundLines(tell, every=0.0)]
        top = read_config(config)
        # The last observer hears of the end first, so that trackers find the figures drawn.
        drawn = [Figures()] if top.figures else []
        watching = (*shown, TensorBoard(), *build_trackers(top.trackers), *drawn, *observers)
        return _simulate(config, folder, watching, backend_of, strategy, load)


def _simulate(
    config: DictConfig,
    folder: Path,
    observers: Sequence[Observer],
    backend_of: Callable[[RunConfig, TaskData], Backend] | None,
    strategy: CloudStrategy | None,
    load: Callable[[Mapping[str, Any]], TaskData],
) -> Run:
    top = read_config(config)
    data, augmentation = build_data(top.data, top.training.seed, load)
    objective = build_objective(top.objective)
    model, cut = build_model(top.model, data, top.training.seed, objective)
    check_resume(top.resume)
    terms = build_terms(top.deployment)  # a simulation does not need them, but a wrong key is an error
    if backend_of is None:
        refuse_without_nodes(**terms.closing)
    return simulate(
        model,
        data,
        strategy=strategy or build("strategy", top.strategy),
        cut=cut,
        cuts=build_cuts(top.cuts),
        places=build_places(top.model),
        partition=build("partition", top.partition),
        objective=objective,
        metrics=top.metrics,
        stop=build_stop(top.stop),
        optimizer=build_optimizer(top.optimizer),
        augmentation=augmentation,
        aggregator=build_aggregator(top.aggregator),
        mobility=build_mobility(top.mobility),
        selection=build_selection(top.selection),
        availability=build_availability(top.availability),
        privacy=build_privacy(top.privacy),
        memory=build_memory(top.memory),
        exits=build_exits(top.exits, top.exit_training),
        training=top.training,
        evaluation=top.evaluation,
        wire=build_wire(top.codec),
        hardware=build_hardware(top),
        init_from=top.init_from,
        nodes=top.nodes,
        backend=build_backend(top.backend) if backend_of is None else backend_of(top, data),
        allowed=top.allowed,
        out=folder,
        resume=top.resume is not None,
        name=None if top.name is None else str(top.name),
        tags=top.tags,
        profile=top.profile,
        progress=False,
        observers=observers,
    )


def _shown(progress: bool, title: str) -> list[Observer]:
    """Returns a progress bar on a terminal, or lines in a job's output."""
    if sys.stderr is not None and sys.stderr.isatty():
        return [ProgressBar()] if progress else []
    return [RoundLines(lambda line: tell(f"{title}: {line}" if title else line))]


def check_resume(resume: str | None) -> None:
    """Refuse a folder without a run that can be resumed."""
    if resume is not None and not str(resume).strip():
        raise ConfigError(f"resume={resume!r}: it names no folder; give that of an earlier run, or leave it out")
    if resume is not None and not Path(resume).is_dir():
        raise ConfigError(f"resume={resume}: there is no such folder; give the folder of an earlier run")
    if resume is not None and (Path(resume) / "multirun.yaml").exists():
        go_on = shell_line(["fsl-simulate", "-m", f"resume={override_value(resume)}"])
        raise ConfigError(f"resume={resume}: that is a sweep; {go_on} goes on with it")


def outcome_lines(metrics: Sequence[Mapping[str, Any]], folder: RunFolder, *, figures: bool) -> str:
    """Returns the lines that end a run: its results, its folder, and where its `figures` are, if it drew any.

    `figures`: whether it was to draw any; a full disk, for example, can keep it from that.
    """
    names = folder.read_summary().get("metrics") or ()
    drawn = [f"figures: {_short(folder.figures)}"] if figures and folder.figures.is_dir() else []
    return "\n".join([scores(metrics, names), f"results: {_short(folder.path)}", *drawn, *profile_lines(folder)])


def profile_lines(folder: RunFolder) -> list[str]:
    """Returns where the time of a profiled run went, in a few lines; none for another run."""
    summary = folder.newest_profile()
    if not (processes := read_summary(summary).get("processes")):
        return []
    most = [f"{row['kind']} {row['share']:.0%}" for row in processes[0]["kinds"][:_MOST_KINDS]]
    said = f"{processes[0]['wall_seconds']:.3g} s: {', '.join(most)}"
    return [f"profile: {_short(summary.parent)} ({said})"]


def scores(metrics: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """Describe the last round's results in words; `names`: those of metrics beside loss and accuracy."""
    last = metrics[-1] if metrics else {}
    told = ("train_loss", "loss", "accuracy", *names, "own_accuracy")
    return ", ".join(f"{name} {last[name]:.4f}" for name in told if last.get(name) is not None)


def accuracy(run: Run) -> float | None:
    """Returns the last round's accuracy; None without an evaluation."""
    return run.metrics[-1].get("accuracy") if run.metrics else None


def say(line: str, code: int) -> int:
    """Print one line on stderr; returns the given exit code."""
    with suppress(OSError, ValueError):  # stderr may be closed
        print(f"fsl-simulate: {line}", file=sys.stderr, flush=True)
    return code


def _short(path: Path) -> str:
    return os.path.relpath(path)


_MOST_KINDS = 5  # of spans, that are told at a run's end
