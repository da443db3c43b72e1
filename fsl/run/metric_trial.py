"""What is tried of metrics on a few rows, and which columns a run's rounds will have."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fsl.errors import ConfigError
from fsl.faults import trying
from fsl.metrics import NAMES, Metrics
from fsl.metrics.metric_set import scored
from fsl.objective import Objective
from fsl.round.workload import Workload
from fsl.run.objective_trial import named
from fsl.run.summary import COLUMNS
from fsl.run.vertical_check import is_vertical
from fsl.settings.early_stop import EarlyStop
from fsl.settings.evaluation_settings import Evaluation
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.split.exit_tap import exit_taps
from fsl.split.placing import TOP


def try_metrics(metrics: Metrics, objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    """ConfigError, in one line, for a metric that does not fit what the objective's outputs predict, or fails."""
    tried = metrics.fresh()
    batch = scored(outputs, targets, objective)
    for name, metric in tried.by_name.items():
        try:
            metric.refuse(batch)
        except ConfigError as error:
            raise ConfigError(f"metrics={name} does not fit objective={named(objective)}: {error}") from None
        with trying(f"metrics={name} cannot score outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}"):
            metric.update(batch)
            metric.compute()


def refuse_unscored(given: Metrics | None, evaluation: Evaluation, tested: bool) -> None:
    """ConfigError for metrics that nothing would compute."""
    if not given:
        return
    names = ", ".join(given.by_name)
    if not tested and not evaluation.own:
        raise ConfigError(f"metrics={names}: there are no test data to compute them on; give test_data or evaluate_own")
    if not evaluation.every:
        raise ConfigError(
            f"metrics={names}: evaluate_every=0, so that they are never computed; evaluate, or leave them out"
        )


def stop_that_can_be(
    stop: EarlyStop | None, federation: Federation, strategy: CloudStrategy, workload: Workload, accurate: bool
) -> EarlyStop | None:
    """The rule with its mode; ConfigError for a metric that no round of this run will have.

    `accurate`: whether the objective has an accuracy. A strategy with metrics of its own may have columns that nobody
    knows before the first round.
    """
    if stop is None:
        return None
    columns = columns_of(federation, strategy, workload, accurate)
    if stop.metric in columns or _has_own(strategy):
        return stop.with_mode(federation.metrics)
    why = _why_not(stop.metric, federation, workload, accurate)
    raise ConfigError(f"stop.metric={stop.metric}: no round of this run has it{why}; there are {', '.join(columns)}")


def columns_of(federation: Federation, strategy: CloudStrategy, workload: Workload, accurate: bool) -> Sequence[str]:
    """Returns the columns of numbers that rounds of this run have, as far as they are known before it."""
    evaluation, private = federation.evaluation, strategy.fronts == "private"
    scores = {"loss": False, **({"accuracy": True} if accurate else {}), **federation.metrics}
    at_exits = [f"{name}_at_{tap.exit.point}" for tap in exit_taps(workload.model) for name in ("loss", "accuracy")]
    columns: list[str] = [] if federation.privacy is not None and federation.privacy.withheld else ["train_loss"]
    if evaluation.every:
        if federation.tested:
            columns += _by_devices(scores) if private and not is_vertical(strategy) else [*scores, *at_exits]
        if workload.data.validation is not None and not private:
            columns += [f"validation_{name}" for name in (*scores, *at_exits)]
        if evaluation.own:
            columns += [f"own_{name}" for name in _by_devices(scores)]
    costs = ("seconds", "sim_seconds", "energy_joules")
    columns += [name for name, has in _of_settings(federation).items() if has]
    priced = COLUMNS if federation.costs is not None else [name for name in COLUMNS if name not in costs[1:]]
    return [*columns, *(name for name in priced if name not in ("train_loss", "loss", "accuracy"))]


def _of_settings(federation: Federation) -> dict[str, bool]:
    """Returns the columns that some settings bring, and whether a run has these."""
    moves, hops = federation.mobility is not None, TOP in federation.layouts
    return {
        "available": federation.availability is not None,
        "late": federation.training.deadline is not None,
        **dict.fromkeys(("moves", "migration_bytes", "wasted_steps", "dropped"), moves),
        **dict.fromkeys(("hop_bytes", "hop_up_bytes", "hop_down_bytes"), hops),
    }


def _by_devices(scores: Mapping[str, bool | None]) -> list[str]:
    found = []
    for name, higher in scores.items():
        found += [name, f"{name}_std", *([] if higher is None else [f"{name}_worst"])]
    return found


def _why_not(metric: str, federation: Federation, workload: Workload, accurate: bool) -> str:
    evaluation = federation.evaluation
    if metric == "train_loss":
        return " (a private run withholds training losses)"
    if metric.startswith("validation_") and workload.data.validation is None:
        return " (there are no validation data: data.validation=0.1 holds some out)"
    if metric.startswith("own_") and not evaluation.own:
        return " (evaluate_own=0.2 has devices hold out rows of their own)"
    if not evaluation.every:
        return " (nothing is evaluated)"
    if metric.endswith("accuracy") and not accurate:
        return " (the objective has no accuracy)"
    return f" (metrics=[{metric}] computes it)" if metric in NAMES else ""


def _has_own(strategy: CloudStrategy) -> bool:
    """Returns whether a strategy has columns that this file does not know."""
    hook = getattr(type(strategy), "metrics", None)
    if is_vertical(strategy) or strategy.fronts == "merged":  # fsl's own, whose columns go by parties and merges
        return True
    return hook is not None and not str(getattr(hook, "__module__", "")).startswith("fsl.")
