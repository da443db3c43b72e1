"""Why devices do not finish, as their own node counts it."""

from dataclasses import replace

import pytest

from fsl.errors import LostError
from fsl.round.front_device import Device
from fsl.wire.device.device_meter import DeviceMeter
from tests.helpers.lowlevel import Edge, a_plan

pytestmark = pytest.mark.slow


class Told(DeviceMeter):
    """Writes down what it is told of rounds and devices."""

    def __init__(self):
        self.rounds = []
        self.finished = 0
        self.lost = []

    def round_began(self, round, devices):
        self.rounds.append((round, devices))

    def round_ended(self, seconds):
        self.rounds.append("ended")

    def device_finished(self, steps=0):
        self.finished += 1

    def device_lost(self, loss):
        self.lost.append(loss)


def attend(folder, devices=range(1), **options):
    told = Told()
    with Edge(folder / "edge", a_plan(), range(2)) as edge:
        edge.patience = replace(edge.patience, join=0.5)
        edge.attend(folder / "devices", devices, told, **options)
    assert told.rounds == [(1, len(devices)), "ended"]
    return told


def raising(error):
    def forward(self):
        raise error

    return forward


def test_who_finishes_is_counted(tmp_path):
    told = attend(tmp_path, range(2))
    assert (told.finished, told.lost) == (2, [])


def test_an_edge_that_nobody_reaches(tmp_path):
    assert attend(tmp_path, address="127.0.0.1:1").lost == ["unreachable"]


def test_a_round_that_closes(tmp_path):
    assert attend(tmp_path, seconds=0.0).lost == ["deadline"]


def test_a_device_that_its_edge_turns_away(tmp_path, monkeypatch):
    monkeypatch.setattr(Edge, "token", lambda *_, **__: b"no token")
    assert attend(tmp_path).lost == ["refused"]


@pytest.mark.parametrize(
    ("error", "loss"), [(LostError(0, "its training has diverged"), "unusable"), (ArithmeticError("hm"), "failed")]
)
def test_a_device_that_fails_here(error, loss, tmp_path, monkeypatch):
    monkeypatch.setattr(Device, "forward", raising(error))
    told = attend(tmp_path)
    assert (told.finished, told.lost) == (0, [loss])
