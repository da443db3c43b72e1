"""What an account must know of all rounds of a run: their edge trainers, and which segments train at all."""

from collections import Counter
from collections.abc import Mapping

from torch import nn

from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.segments.modes import modes_of, normalises_over_rows, put_back, training_modes
from fsl.segments.states import Layout
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.trainers import EdgeTrainer


def trainers_of(strategy: CloudStrategy, rounds: int) -> dict[str, EdgeTrainer | None]:
    """The edge trainers of these rounds, each once, by what a plan says of them; None for rounds without an edge."""
    found: dict[str, EdgeTrainer | None] = {}
    ask = getattr(strategy, "planned", strategy.trainer)  # which says in a line what is no trainer
    for round in range(1, rounds + 1):
        spec = ask(round)
        if (text := described(spec)) not in found:
            found[text] = None if spec is None else spec.build()
    return found


def rounds_ahead(strategy: CloudStrategy, federation: Federation) -> Counter[int]:
    """Returns in how many rounds each device trains at most: all, where who is chosen cannot be known ahead."""
    training = federation.training
    if not _foreseen(federation):
        return Counter(dict.fromkeys(range(training.devices), training.rounds))
    return Counter(device for round in range(1, training.rounds + 1) for device in strategy.chosen(round))


def most_ahead(strategy: CloudStrategy, federation: Federation) -> int:
    """Returns how many devices train in one round at most."""
    training = federation.training
    if not _foreseen(federation):
        return training.devices
    # A strategy may choose more of them than `devices_per_round`.
    return max(1, *(len(strategy.chosen(round)) for round in range(1, training.rounds + 1)))


def _foreseen(federation: Federation) -> bool:
    """Whether a selection chooses ahead as it does in its round; n_k of a real federation's members come later."""
    selection = federation.selection
    return selection.foreseen and not (federation.placement is not None and "samples" in selection.needs)


def described(spec: Spec | None) -> str:
    """Returns a trainer's class and arguments as text; equal texts mean equal trainers."""
    return "" if spec is None else f"{spec.target} {sorted(spec.kwargs.items())}"


def refuse_unseen(round: int, spec: Spec | None, trainers: frozenset[str] | None) -> None:
    """RunError for a round's trainer that was not among those that the account is of."""
    if trainers is not None and described(spec) not in trainers:
        raise RunError(
            f"round {round}: trainer() says {described(spec) or 'no edge'}, and said something else when the run's "
            "privacy was accounted for; let trainer(round) depend on nothing but the round and the run's settings"
        )


def fixed_segments(model: nn.Module, layouts: Mapping[str, Layout]) -> tuple[str, ...]:
    """The segments that no step changes: without a parameter that is trained, in a model without batch statistics."""
    before = modes_of(model)
    try:
        put_back(training_modes(model))
        if any(normalises_over_rows(module) for module in model.modules()):
            return ()
    finally:
        put_back(before)
    return tuple(name for name, layout in layouts.items() if not any(field.trainable for field in layout.fields))
