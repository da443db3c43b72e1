"""What an edge sees of the same rows, round after round, with noise that is new each time."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fsl.attacks.attack import Target
from fsl.data import Examples

_GROUPS = 32  # sights that stay apart, at most; of neighbouring ones the mean is taken
_KEPT = 2**26  # numbers of known smashed data that are kept in memory


class Sights:
    """All sights that an edge has of a device's rows in a run, or the last `most` of them.

    The edge is taken to know which rows are of the same sample (it can tell by how alike they are), and to have been
    able to ask the front of each round. Each round's rows stay apart, since its front is another; where there are many
    rounds, neighbouring ones are averaged.
    """

    def __init__(self, target: Target, most: int | None = None):
        self.target = target
        if most == 1:
            fronts: Sequence[nn.Module] = [target.front]
        else:
            # Passes of one round show the same thing again unless something is drawn anew.
            passes = target.passes if target.noise_std else 1
            fronts = [front for front, _ in target.rounds() for _ in range(passes)][-(most or 0) :]
        self.number = len(fronts)
        groups = min(self.number, _GROUPS)
        ends = [i * self.number // groups for i in range(groups + 1)]
        self._groups = [fronts[low:high] for low, high in pairwise(ends)]
        self._known: list[Tensor] | None = None
        self._drawn = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Sights (B, groups * C, ...) of inputs (B, ...), with noise that no other call has."""
        return self._seen([self.target.clean(inputs, front) for front in self._fronts])

    def of_known(self, known: Examples, rows: Tensor) -> Tensor:
        """Sights of these rows of the adversary's own data."""
        if self._known is None:
            one = self.target.clean(known.batch(rows[:1])[0])
            if one.numel() * len(known) * len(self._fronts) > _KEPT:
                return self(known.batch(rows)[0])
            whole = torch.arange(len(known)).split(512)
            self._known = [
                torch.cat([self.target.clean(known.batch(part)[0], front) for part in whole]) for front in self._fronts
            ]
        return self._seen([clean[rows] for clean in self._known])

    def mean(self, inputs: Tensor) -> Tensor:
        """The mean of all sights (B, C, ...) of inputs (B, ...)."""
        seen = self(inputs)
        return seen.view(len(seen), len(self._groups), -1, *seen.shape[2:]).mean(1)

    @property
    def _fronts(self) -> list[nn.Module]:
        """Without repetitions."""
        return list({id(front): front for group in self._groups for front in group}.values())

    def _seen(self, clean: Sequence[Tensor]) -> Tensor:
        by_front = {id(front): rows for front, rows in zip(self._fronts, clean)}
        means = []
        for group in self._groups:
            total = torch.zeros(())
            for front in group:
                self._drawn += 1
                total = total + self.target.sent(by_front[id(front)], self._drawn)
            means.append(total / len(group))
        return torch.cat(means, dim=1)
