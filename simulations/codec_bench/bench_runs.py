"""Runs of a bench: one for each case and seed, in folders of their own, several at a time."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fsl.simulations.codec_bench.cases import Case
from fsl.simulations.endings import tell
from fsl.simulations.sweeps.jobs import plain
from fsl.simulations.sweeps.search_trial import TrialResult, TrialTask, composed, run_trial
from fsl.simulations.sweeps.trial_pool import run_in_processes
from omegaconf import OmegaConf

from fsl.errors import ConfigError
from fsl.run.provenance import CHANGE_NO_RESULT
from fsl.run.run_folder import RunFolder

_COMPOSED = ".hydra/config.yaml"


@dataclass(frozen=True)
class BenchRun:
    """One training run: a case under a seed."""

    case: Case
    seed: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def title(self) -> str:
        """Names it on the terminal."""
        return f"{self.case.title}, seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        return bool(RunFolder(self.folder).read_summary().get("final"))


def runs_of(cases: Sequence[Case], seeds: Sequence[int], overrides: Sequence[str], out: Path) -> list[BenchRun]:
    """Returns all runs, seed by seed, so that what is there after each seed can be compared."""
    return [
        BenchRun(case, seed, out / "runs" / case.folder / str(seed), (*overrides, *case.overrides, f"seed={seed}"))
        for seed in seeds
        for case in cases
    ]


def refuse_others(runs: Sequence[BenchRun]) -> None:
    """ConfigError where a run's folder has one of other settings: two benches are not mixed."""
    for run in runs:
        if not (run.folder / _COMPOSED).exists():
            continue
        before = plain(OmegaConf.load(run.folder / _COMPOSED))  # type: ignore[arg-type]
        now = plain(composed(run.overrides))
        for key in sorted({*before, *now} - {*CHANGE_NO_RESULT}):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"{run.folder} has a run with another {key} ({before.get(key)}, now {now.get(key)}); give the "
                    "settings of before, or another --out"
                )


def take(runs: Sequence[BenchRun], jobs: int, metric: str, sign: int) -> dict[str, str]:
    """Run what is not done, `jobs` at a time in processes of their own; returns why runs failed, by title."""
    waiting = [run for run in runs if not run.done]
    failed: dict[str, str] = {}
    with closing(_results(waiting, jobs, metric, sign)) as results:
        for run, result in results:
            if result.state == "complete":
                tell(f"{run.title}: {metric} {result.value:.4f}")
            else:
                failed[run.title] = result.reason
                tell(f"{run.title} failed: {result.reason}")
    return failed


def _results(waiting: list[BenchRun], jobs: int, metric: str, sign: int) -> Generator[tuple[BenchRun, TrialResult]]:
    def task(run: BenchRun) -> TrialTask:
        return TrialTask(run.folder, run.overrides, metric, False, sign, progress=jobs == 1)

    if jobs == 1:
        for run in waiting:
            yield run, run_trial(task(run), _go_on)
        return
    yield from run_in_processes(iter(waiting), jobs, task, lambda run: _go_on)


def _go_on(round: int, value: float) -> bool:
    """Returns whether to stop a run here: never."""
    return False
