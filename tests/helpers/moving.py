"""Schedules of devices that move, and federations over gRPC in which they do."""

import pytest

from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.mobility import RandomMobility, ScheduledMobility
from fsl.wire.options import Patience
from tests.helpers.runs import assert_same_bits
from tests.helpers.wired import Wired

CODECS = [f"fsl.codecs.{name}" for name in ("Identity", "Float16", "BFloat16", "Int8")]
OPTIONS = {"devices": 4, "edges": 2, "batch_size": 6}  # four uploads a round
MOVED = {"seconds", "sim_seconds", "energy_joules"}
COUNTED = {"migration_seconds", "moves", "migration_bytes", "uploads", "wasted_steps", "dropped"}


def plan_of(*moves):
    """A schedule of (device, round, fraction, edge)."""
    names = ("device", "round", "fraction", "edge")
    return ScheduledMobility([dict(zip(names, move, strict=True)) for move in moves])


FIRST = plan_of((0, 1, 0.25, 1), (2, 2, 0.25, 1))
MIDDLE = plan_of((0, 1, 0.5, 1), (2, 2, 0.5, 1))
LAST = plan_of((0, 1, 1.0, 1), (2, 2, 1.0, 1))
TWO = plan_of((0, 1, 0.25, 1), (0, 1, 0.75, 2), (1, 2, 0.5, 2), (1, 2, 0.75, 0))
BACK = plan_of((0, 1, 0.25, 1), (0, 1, 0.75, 0), (2, 2, 0.5, 1), (2, 2, 1.0, 0))
ALL = RandomMobility(0.9)
SCHEDULES = {"first": FIRST, "middle": MIDDLE, "last": LAST, "two": TWO, "back": BACK, "all": ALL}
moves = pytest.mark.parametrize("mobility", SCHEDULES.values(), ids=SCHEDULES)


def assert_as_without(still, moved, ignored=MOVED | COUNTED):
    for segment in still.states:
        assert_same_bits(still.states[segment], moved.states[segment])
    for a, b in zip(still.metrics, moved.metrics, strict=True):
        assert {k: v for k, v in a.items() if k not in ignored} == {k: v for k, v in b.items() if k not in ignored}


PATIENT = Patience(join=20, straggler=20, answer=40)


def wired(folder, edges=3, patience=PATIENT, roaming=False, replicate_every=0, **options):
    roster = Roster("", Terms(wait=5, bind_keys=False, roaming=roaming, replicate_every=replicate_every))
    return Wired(folder=folder, edges=edges, patience=patience, roster=roster, **options)
