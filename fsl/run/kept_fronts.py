"""Tells a run's store which private fronts count: those of the last checkpoint, and of the one before it."""

from collections.abc import Mapping
from typing import Any

from fsl.round.node_store import Store
from fsl.round.superseded_packs import RoundsOf, SupersededPacks
from fsl.run.generations import Generations, GenerationsThen

_DEVICE = "device-"  # of an owner's name


class KeptFronts:
    """Deletes private fronts in packs once both checkpoints in the run's folder name later ones."""

    def __init__(self, store: Store):
        self._store = store
        self._superseded = SupersededPacks(store.packs, store.durable)
        self._last: GenerationsThen | None = None
        self._before: GenerationsThen | None = None

    def resumed(self, round: int, state: Mapping[str, Any]) -> None:
        """Note that a run goes on from the checkpoint of this round, with this state of its strategy."""
        self._store.packs.discard_after(round)
        self._last = _generations(state)

    def checkpointed(self, state: Mapping[str, Any]) -> None:
        """Note that the checkpoint with this state of the strategy is complete."""
        now, last = _generations(state), self._last
        changed = () if last is None or self._before is None else last.since(self._before)
        devices = [int(owner.removeprefix(_DEVICE)) for owner in changed if owner.startswith(_DEVICE)]
        self._superseded.collect(devices, _named_by(now, {} if last is None else last))
        self._last, self._before = now, last

    def finished(self, state: Mapping[str, Any], previous: Mapping[str, int]) -> None:
        """Leave states alone in the folder of a run that has ended: those of this state of its strategy.

        `previous`: the round of each owner's generation that the checkpoint before the last one names.
        """
        self._store.settle(_named_by(_generations(state), previous))


def _named_by(*checkpoints: Mapping[str, int]) -> RoundsOf:
    """Returns a function that tells the rounds whose front of a device these checkpoints name."""
    return lambda device: {rounds.get(f"{_DEVICE}{device}", 0) for rounds in checkpoints}


def _generations(state: Mapping[str, Any]) -> GenerationsThen:
    found = state["versions"]
    return found if isinstance(found, GenerationsThen) else Generations(found).now()
