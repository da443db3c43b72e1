"""Strategies for the tests of a real federation; its nodes import them from here."""

from collections.abc import Sequence

from fsl.strategies import SplitFedV1

from fsl.plan import Spec
from fsl.trainers import Replicated


class Chosen(SplitFedV1):
    """SplitFed V1 with exactly these devices in each round."""

    def __init__(self, rounds: Sequence[Sequence[int]]):
        super().__init__()
        self.rounds = [list(devices) for devices in rounds]

    def select(self, round: int) -> Sequence[int]:
        return self.rounds[round - 1]


class Raising(Replicated):
    """A trainer that raises at one edge, in one round, at its second step."""

    def __init__(self, edge: int, round: int):
        self.at = (edge, round)

    def step(self, messages):
        if (self.edge, self.bench.round) == self.at and messages[0].step == 1:
            raise ArithmeticError("no such luck")
        return super().step(messages)


class RaisingV1(SplitFedV1):
    """SplitFed V1 whose trainer raises at edge 0 in round 6."""

    def trainer(self, round: int) -> Spec:
        return Spec(self.path(Raising), {"edge": 0, "round": 6})
