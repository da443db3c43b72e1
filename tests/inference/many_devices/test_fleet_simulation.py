"""No second and no joule is lost or counted twice, whoever waits for whom."""

import numpy as np
import pytest

from fsl.inference.many_devices import FleetActions, FleetSetting, FleetSimulation, PointTable, RadioCell
from fsl.inference.planning import LOCAL, REMOTE, SplitChoice
from tests.helpers.fleets import fleet, run, told


def mixed(**options):
    """Devices that do all sorts of things, at an edge with a queue and answers that take time."""
    setting = fleet(4, 2, faster=3.0, down=1.0, waiting_watts=0.5, slot_seconds=0.05, **options)
    return run(setting, told([1, 2, 0, 5], [0, 0, 1, 1], [0.5, 0.01, 1.0, 1.0]), [10.0, 20.0, 30.0, 40.0], tasks=30)


def test_a_tasks_phases_add_up_to_its_time():
    records, _, _ = mixed()
    phases = records.head + records.upload + records.queue + records.tail + records.down
    assert phases == pytest.approx(records.seconds, abs=1e-9)
    assert (records.queue > 0).any()


def test_the_tasks_times_add_up_to_the_devices():
    records, seconds, _ = mixed()
    assert np.bincount(records.devices, records.seconds) == pytest.approx(seconds, abs=1e-9)


def test_the_tasks_joules_add_up_to_the_devices():
    records, _, joules = mixed()
    assert np.bincount(records.devices, records.joules) == pytest.approx(joules, abs=1e-9)


def test_each_task_is_answered_once():
    records, _, _ = mixed()
    assert np.bincount(records.devices).tolist() == [30] * 4


def test_the_slots_length_changes_nothing_of_fixed_actions():
    (short, _, _), (long, _, _) = (run(fleet(2, slot_seconds=s), told([1, 2])) for s in (0.001, 10.0))
    assert sorted(short.seconds) == pytest.approx(sorted(long.seconds))


def test_copies_do_not_see_each_other():
    setting = fleet(3, 2, faster=5.0)
    simulation = FleetSimulation(setting, 2, 0, logs=True)
    simulation.place(np.array([[5.0, 10.0, 20.0], [50.0, 60.0, 70.0]]), np.full((2, 3), 5))
    actions = FleetActions(np.array([[1, 1, 2], [0, 1, 5]]), np.array([[0, 0, 1], [0, 0, 0]]), np.full((2, 3), 0.5))
    while not simulation.step(actions).terminated.all():
        pass
    alone, _, _ = run(setting, told([0, 1, 5], [0, 0, 0], [0.5] * 3), [50.0, 60.0, 70.0], tasks=5)
    records = simulation.records
    assert records.seconds[records.copies == 1] == pytest.approx(alone.seconds)


def test_who_waits_for_the_edge_waits_for_what_came_before():
    table = PointTable(
        model="made up",
        choices=(REMOTE, SplitChoice("a"), LOCAL),
        head_seconds=(0.0, 1.0, 9.0),
        head_joules=(0.0, 1.0, 9.0),
        up_bits=(1.0, 1.0, 0.0),
        tail_seconds=(1.0, 0.5, 0.0),
        down_bits=(0.0, 0.0, 0.0),
    )
    setting = FleetSetting(table=table, devices=3, radio=RadioCell(channels=3, width_hz=1e9))
    records, _, _ = run(setting, told([1, 1, 1], [0, 1, 2]), 1.0, tasks=1)
    assert sorted(records.queue) == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)


def test_the_power_of_a_slot_counts_for_the_tasks_begun_in_it():
    setting = fleet(1, slot_seconds=0.005)
    simulation = FleetSimulation(setting, 1, 0, logs=True)
    simulation.place(np.full((1, 1), 50.0), np.full((1, 1), 1))
    simulation.step(told([1]))
    while not simulation.step(told([5], watts=[1e-5])).terminated.all():
        pass
    assert simulation.records.points.tolist() == [1]
    assert simulation.records.seconds == pytest.approx([12.1e-3], rel=2e-3)
