"""Writes the notes that a reader of a report needs besides the numbers, a sentence each."""

from collections.abc import Iterator

from fsl.simulations.reports.compare import Comparison, Figure, Group
from fsl.simulations.reports.run_records import RunRecord

_SHOWN = 5  # runs named before "and 7 more"


def notes(comparison: Comparison) -> list[str]:
    """Returns all notes, the most important first."""
    said = [comparison.order] if comparison.order else []
    said += _grouped(comparison)
    if comparison.target:
        said.append(f"Target accuracy: {100 * comparison.target:g} %, {comparison.target_reason}.")
    else:
        said.append(f"{comparison.target_reason[0].upper()}{comparison.target_reason[1:]}.")
    said += _statistics(comparison)
    said += _left_out(comparison)
    said += _repeats(comparison.groups)
    if comparison.response is not None and comparison.response.remark:
        said.append(comparison.response.remark)
    if comparison.idle:
        said.append(f"Without a finished round: {_listed([str(run.folder) for run in comparison.idle])}.")
    return [*said, *(f"Left out: {line}." for line in comparison.unreadable)]


def _grouped(comparison: Comparison) -> list[str]:
    if comparison.by is None:
        return []
    by = ", ".join(comparison.by) or "nothing"
    if not comparison.averaged:
        return [f"Grouped by {by}."]
    over = "; ".join(f"{name} ({values})" for name, values in comparison.averaged.items())
    said = [f"Grouped by {by}: means, intervals and p-values are over what else differs, too: {over}."]
    if comparison.uneven:
        said.append("Groups have not the same mix of these, so a difference between groups may come from the mix.")
    return said


def _statistics(comparison: Comparison) -> Iterator[str]:
    known = [group.spread(Figure(comparison.metric)) for group in comparison.groups]
    if any(spread is not None and spread.count > 1 for spread in known):
        scale = ", on the logit scale, so that shares stay within 0 and 100 %" if comparison.measure.share else ""
        yield f"Intervals hold the mean with 95 %: Student's t over runs{scale}."
    if comparison.paired:
        several = len(comparison.paired)
        corrected = f", corrected for {several} comparisons (Holm)" if several > 1 else ""
        yield (
            f"p-values are those of a paired t-test over the seeds shared with {comparison.baseline}, two-sided"
            f"{corrected}."
        )
    elif len(comparison.groups) > 1:
        yield (
            f"No group shares two seeds with {comparison.baseline}, so there is no comparison seed by seed; run each "
            "with seed=0,1,2."
        )


def _left_out(comparison: Comparison) -> Iterator[str]:
    for state, meaning in (
        (
            "diverged",
            "a loss that was not finite, or for 3 rounds in a row a training loss above the bound, 2 ln(classes) for "
            "classification",
        ),
        ("unfinished", "it stopped before its last round, or is under way"),
    ):
        count = sum(len(getattr(group, state)) for group in comparison.groups)
        if count:
            yield f"{count} run{'' if count == 1 else 's'} {state}, not in any mean: {meaning}."


def _repeats(groups: tuple[Group, ...]) -> Iterator[str]:
    pairs = [(run, group.twins[run.folder]) for group in groups for run in group.repeated]
    if not pairs:
        return
    count = len(pairs)
    names = _listed([f"{run.folder} (as {twin.folder})" for run, twin in pairs])
    yield (
        f"{count} run{'' if count == 1 else 's'} repeated, not in any mean: {names}. Settings and seed are those of "
        "the run in brackets, the newest finished one, which counts alone; where something else was meant to differ, "
        "give each its name= or tags."
    )
    other = [f"{run.folder} and {twin.folder}" for run, twin in pairs if not _alike(run, twin)]
    if other:
        yield (
            f"Of these, {_listed(other)} have other results, so something differs between them that their settings do "
            "not say (code, data, machine)."
        )


def _alike(run: RunRecord, twin: RunRecord) -> bool:
    """Returns whether two runs have the same results in the rounds that both have."""
    keys = ("train_loss", "loss", "accuracy")
    return all(row.get(key) == other.get(key) for row, other in zip(run.rows, twin.rows) for key in keys)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
