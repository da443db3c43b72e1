"""Strategies for the tests of a real federation; its nodes import them from here."""

from collections.abc import Sequence
from pathlib import Path

from fsl.strategies import FedFly, SplitFedV1

from fsl.deployment.processes import wait_until
from fsl.importing.spec import Spec
from fsl.trainers import Replicated


class Chosen(SplitFedV1):
    """SplitFed V1 with exactly these devices in each round."""

    def __init__(self, rounds: Sequence[Sequence[int]]):
        super().__init__()
        self.rounds = [list(devices) for devices in rounds]

    def select(self, round: int) -> Sequence[int]:
        return self.rounds[round - 1]


class Stage:
    """A folder in which a test and a federation's processes wait for each other: no fault comes too early or late."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def hold(self, scene: int) -> None:
        """In the federation: say that it came to this, and wait until the test lets it go on."""
        (self.folder / f"{scene}").touch()
        assert wait_until((self.folder / f"{scene}-done").exists, 120, 0.02)

    def wait(self, scene: int) -> bool:
        """In the test: whether the federation came to this."""
        return wait_until((self.folder / f"{scene}").exists, 120, 0.02)

    def go_on(self, scene: int) -> None:
        (self.folder / f"{scene}-done").touch()


SCENES = {1: 3, 2: 1, 3: 0, 4: 2}  # whose step is held, by round


class Staged(Replicated):
    """In each round of SCENES it holds the answer to one device's fourth step; in round 6, edge 0 raises."""

    def __init__(self, folder: str):
        self.stage = Stage(folder)

    def step(self, messages):
        round, message = self.bench.round, messages[0]
        if round == 6 and self.edge == 0 and message.step == 1:
            raise ArithmeticError("no such luck")
        if message.step == 3 and message.device == SCENES.get(round):
            self.stage.hold(round)
        return super().step(messages)


class StagedV1(SplitFedV1):
    """SplitFed V1 with that trainer; between rounds 4 and 5 it waits for the test."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def device_rule(self, round: int) -> Spec:  # asked for before the cloud looks who is there
        if round == 5:
            Stage(self.folder).hold(round)
        return super().device_rule(round)

    def trainer(self, round: int) -> Spec:
        return Spec(self.path(Staged), {"folder": self.folder})


GIVES, TAKES = {1, 4, 5, 6}, {2, 3}  # rounds in which edge 0 is held as it gives a session, edge 1 as it takes one


class StagedMoves(Replicated):
    """An edge holds a session that it is to hand over, or one that comes to it."""

    def __init__(self, folder: str):
        self.stage = Stage(folder)

    def snapshot(self, device):
        if self.edge == 0 and self.bench.round in GIVES:
            self.stage.hold(self.bench.round)
        return super().snapshot(device)

    def adopt(self, device, snapshot):
        if self.edge == 1 and self.bench.round in TAKES:
            self.stage.hold(self.bench.round)
        super().adopt(device, snapshot)


class StagedFedFly(FedFly):
    """FedFly with that trainer."""

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def trainer(self, round: int) -> Spec:
        return Spec(self.path(StagedMoves), {"folder": self.folder})
