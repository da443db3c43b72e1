"""Runs the cloud of a federation under Flower: the same run as `fsl-simulate`'s, on the nodes of Flower's Grid."""

import logging
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from fsl.simulations.endings import failure_in_words
from fsl.simulations.error_lines import one_line, with_choices
from fsl.simulations.hydra_folder import FederationConfig
from fsl.simulations.one_run import scores, simulate_config
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fsl.data import TaskData
from fsl.deployment.cloud.line_grid import LineGrid
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.run_watch import RunWatch
from fsl.deployment.cloud.stopped import ends_when_stopped
from fsl.deployment.cloud.terms import Terms, build_terms
from fsl.deployment.local.flower_runs import NOT_AGAIN
from fsl.deployment.node.setup import Setup
from fsl.errors import CodeError, ConfigError, TrustError, UntrainedError
from fsl.faults import is_fault, is_temporary
from fsl.flower.internals import AppFactory, is_simulated
from fsl.round.workload import Workload
from fsl.run.backend import Backend
from fsl.run.config import RunConfig, build_backend
from fsl.settings.placement import Placement
from fsl.wire.line.cloud_lines import CloudLines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlowerBackend(Backend):
    """Uses nodes that Flower runs: SuperNodes of a real federation, or those of Flower's simulation engine."""

    grid: Grid | None = None
    roster: Roster | None = None

    @property
    def placement(self) -> Placement | None:
        """Returns the roster of what the nodes say they host."""
        return self.roster

    def open(
        self, workload: Workload, nodes: int, around: Callable[[AppFactory], ClientApp] | None = None
    ) -> AbstractContextManager[Grid]:
        """Lend Flower's own Grid, which Flower closes; its nodes' apps are not made here."""
        assert self.grid is not None
        return _given(self.grid)


@contextmanager
def _given(grid: Grid) -> Iterator[Grid]:
    yield grid


def run(grid: Grid, overrides: str) -> None:
    """Run Hydra's overrides; ConfigError in one line for an invalid value.

    What the same overrides would come to again says so at its end, for who sends runs (`flower_runs.NOT_AGAIN`).
    """
    try:
        _run(grid, overrides)
    except (ConfigError, TrustError, UntrainedError) as error:
        raise type(error)(f"{error}{NOT_AGAIN}") from error
    except CodeError as error:
        raise CodeError(f"{error}{'' if error.passing else NOT_AGAIN}", error.passing) from error


def _run(grid: Grid, overrides: str) -> None:
    try:
        config, folder = composed(shlex.split(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"overrides: {one_line(error)}") from None
    folder.mkdir(parents=True, exist_ok=True)

    stack = ExitStack()  # what the run opens, it closes
    watch = RunWatch()
    stack.callback(watch.close)

    def backend(top: RunConfig, task: TaskData) -> Backend:
        terms = build_terms(top.deployment)
        asked = build_backend(top.backend)
        if asked != Backend(threads=asked.threads, round_timeout=asked.round_timeout):
            raise ConfigError(
                f"backend={asked.name}: a real federation computes on its nodes, each as its own configuration says "
                "(accelerator=cuda); here only backend.threads and round_timeout count"
            )
        setup = Setup.of(top, task, folder, terms.patience)
        lines = open_lines(terms, grid)
        roster = Roster(setup.to_json(), terms, folder, lines)
        if terms.metrics is not None:
            watch.serve(terms.metrics, str(grid.run.run_id), folder, roster, lines)
        lined = grid if lines is None else stack.enter_context(LineGrid(grid, lines))
        return FlowerBackend(threads=asked.threads, round_timeout=asked.round_timeout, grid=lined, roster=roster)

    try:
        with ends_when_stopped(grid), stack:
            seen_by = (watch, FederationConfig(config))
            finished = simulate_config(config, folder, progress=False, observers=seen_by, backend_of=backend)
    except Exception as error:
        if is_fault(error):  # in one line, since Flower reports one line
            raise CodeError(failure_in_words(error), passing=is_temporary(error)) from error
        raise
    log.info("%s; results: %s", scores(finished.metrics), finished.folder.path)


def open_lines(terms: Terms, grid: Grid) -> CloudLines | None:
    """Open the port of a run's lines; None where the terms, or Flower's simulation engine, have no use for it."""
    if terms.line == "flower" or is_simulated(grid):
        return None
    return CloudLines(terms.line_listen, terms.line_address or ":0")


def composed(overrides: list[str]) -> tuple[DictConfig, Path]:
    """Returns a run's configuration, and the folder for its results (hydra.run.dir)."""
    with initialize_config_module("fsl.configs", version_base="1.3"):
        config = compose("config", overrides=with_choices(overrides), return_hydra_config=True)
    folder = Path(str(OmegaConf.select(config, "hydra.run.dir")))
    with open_dict(config):
        del config["hydra"]
    return config, folder
