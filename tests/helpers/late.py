"""A device that is at work when its round's deadline passes; no clock decides."""

import threading

from fsl.round.deadline import Deadline
from fsl.round.front_device import Device
from fsl.wire.edge.edge_round import EdgeRound
from tests.helpers.poisoned import told_the_round


class WhenTheOthersAre(Deadline):
    """Passes, once, when all but device 2 have done what they can; no clock decides a test."""

    def __init__(self, round):
        super().__init__(600.0)
        self.round = round

    def left(self):
        return 0.02

    def passed(self):
        device, others = self.round.all[2], [a for a in self.round.all.values() if a.device != 2]
        if device.settled or not device.opened:
            return ""
        if self.round.order == "together":
            return "first" if all(a.uploads for a in others) else ""
        return "first" if self.round.order == "in turn" or all(a.settled for a in others) else ""


def slow(monkeypatch, step):
    """Device 2 is at work on a step of round 2 until its edge has lost it."""
    lost, forward, lose, serve = threading.Event(), Device.forward, EdgeRound._lose, EdgeRound._serve

    def waits(self):
        if self.device == 2 and self.step == step and self.round == 2:
            assert lost.wait(60)
        return forward(self)

    def told(self, device, code, reason):
        lose(self, device, code, reason)
        if device == 2:
            lost.set()

    def served(self):
        if self.admission.round == 2:
            self.deadline = WhenTheOthersAre(self)
        return serve(self)

    told_the_round(monkeypatch)
    monkeypatch.setattr(Device, "forward", waits)
    monkeypatch.setattr(EdgeRound, "_lose", told)
    monkeypatch.setattr(EdgeRound, "_serve", served)
