"""Devices that upload what cannot be computed with."""

import torch
from fsl.strategies.algorithm import Algorithm

from fsl.round.device_side import DeviceSide
from fsl.round.front_device import Device
from tests.helpers.runs import ADAM, run

OPTIONS = {"devices": 4, "optimizer": ADAM, "batch_size": 10, "rounds": 3}


def poisoned(monkeypatch, value, *, device=2, rounds=(2,), first=0):
    """Every value that a device uploads in these rounds, from this step on."""
    upload = Device.upload

    def changed(self, smashed, targets):
        if self.device == device and self.round in rounds and self.step >= first:
            smashed = torch.full_like(smashed, value)
        return upload(self, smashed, targets)

    told_the_round(monkeypatch)
    monkeypatch.setattr(Device, "upload", changed)


def told_the_round(monkeypatch):
    """Devices know which round it is, so that one can be hostile in that one alone."""
    begin = DeviceSide.open

    def opened(side, device):
        found = begin(side, device)
        found.round = side.plan.round
        return found

    monkeypatch.setattr(DeviceSide, "open", opened)


def without(device, strategy, monkeypatch, absent=2, **options):
    """A run in which a device does not take part in one round."""
    with monkeypatch.context() as patch:
        everybody = range(OPTIONS["devices"])
        patch.setattr(Algorithm, "select", lambda self, round: [d for d in everybody if d != device or round != absent])
        return run(strategy, **OPTIONS | options)
