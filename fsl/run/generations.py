"""Remembers the round whose state counts, for devices that may be a million, in the time of those that change."""

from collections.abc import Iterator, Mapping


class _Changes:
    """What owners had before they changed between two moments, and the changes after these."""

    def __init__(self) -> None:
        self.before: dict[str, int | None] = {}
        self.following: _Changes | None = None


class GenerationsThen(Mapping[str, int]):
    """Generations as they were at one moment: each owner's round. Making one costs nothing, however many there are."""

    def __init__(self, now: dict[str, int], changes: _Changes):
        self._now = now
        self._changes = changes

    def __getitem__(self, owner: str) -> int:
        for changes in self._later():
            if owner in changes.before:
                round = changes.before[owner]
                break
        else:
            round = self._now.get(owner)
        if round is None:
            raise KeyError(owner)
        return round

    def __iter__(self) -> Iterator[str]:
        names = dict.fromkeys(self._now)
        for changes in self._later():
            names |= dict.fromkeys(changes.before)
        return (owner for owner in names if owner in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def since(self, earlier: "GenerationsThen | None") -> dict[str, int]:
        """Returns the owners that changed since another moment of the same generations, 0 for those without a state.

        All of them since None, and since a moment of others.
        """
        if earlier is None or earlier._now is not self._now:
            return dict(self)
        changed: dict[str, None] = {}
        for changes in earlier._later():
            if changes is self._changes:
                break
            changed |= dict.fromkeys(changes.before)
        return {owner: self.get(owner, 0) for owner in changed}

    def _later(self) -> Iterator[_Changes]:
        changes: _Changes | None = self._changes
        while changes is not None:
            yield changes
            changes = changes.following


class Generations:
    """The round whose state counts of each owner ("device-3", "edge-0"), and the one that the last checkpoint names."""

    def __init__(self, rounds: Mapping[str, int] | None = None):
        """`rounds`: those of a checkpoint, which are saved."""
        self._rounds = {owner: int(round) for owner, round in ({} if rounds is None else rounds).items()}
        self._changes = _Changes()
        self._saved = GenerationsThen(self._rounds, self._changes)

    def __len__(self) -> int:
        return len(self._rounds)

    def __contains__(self, owner: str) -> bool:
        return owner in self._rounds

    def items(self) -> Iterator[tuple[str, int]]:
        """Returns every owner with its round."""
        return iter(self._rounds.items())

    def newest(self, owner: str) -> int:
        """Returns the round of an owner's newest state; 0 for none."""
        return self._rounds.get(owner, 0)

    def saved(self, owner: str) -> int:
        """Returns the round of an owner's state as of the last complete checkpoint; 0 for none."""
        return self._saved.get(owner, 0)

    def note(self, owner: str, round: int) -> None:
        """Note that an owner's state of this round counts from now on."""
        self._changes.before.setdefault(owner, self._rounds.get(owner))
        self._rounds[owner] = round

    def forget(self, owner: str) -> None:
        """Note that an owner has no state any more."""
        self._changes.before.setdefault(owner, self._rounds.get(owner))
        self._rounds.pop(owner, None)

    def now(self) -> GenerationsThen:
        """Returns them as they are now, whatever changes later."""
        if self._changes.before:
            self._changes.following = _Changes()
            self._changes = self._changes.following
        return GenerationsThen(self._rounds, self._changes)

    def checkpointed(self, then: Mapping[str, int]) -> None:
        """Note that a checkpoint is complete that was made of what `now` returned."""
        if not isinstance(then, GenerationsThen):
            then = Generations(then).now()
        self._saved = then
