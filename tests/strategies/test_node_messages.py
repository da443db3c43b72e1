"""Nodes get work by samples, and each device once."""

import pytest
from fsl.strategies.node_messages import assign

from fsl.messages.round_plan import CohortTask, DeviceTask


def cohorts_of(*members):
    return [
        CohortTask(edge=edge, devices=tuple(DeviceTask(device=device) for device in devices))
        for edge, devices in enumerate(members)
    ]


def shares(work):
    return {node: [task.device for cohort in tasks for task in cohort.devices] for node, tasks in work.items()}


def test_nodes_get_like_numbers_of_samples():
    samples = {0: 100, 1: 10, 2: 10, 3: 30, 4: 50, 5: 1, 6: 20, 7: 5}
    found = shares(assign(cohorts_of(range(8)), [7, 9], True, samples=samples.__getitem__))
    assert sorted(device for devices in found.values() for device in devices) == list(range(8))
    loads = [sum(samples[device] for device in devices) for devices in found.values()]
    assert max(loads) - min(loads) <= 6


def test_all_cohorts_together_are_balanced_not_each_alone():
    found = shares(assign(cohorts_of([0], [1], [2], [3]), [7, 9], True, samples=lambda device: 10))
    assert {node: len(devices) for node, devices in found.items()} == {7: 2, 9: 2}


def test_devices_of_a_node_stay_in_order_of_id():
    for node, tasks in assign(cohorts_of(range(9), range(9, 20)), [7, 9], True, samples=lambda d: d * 7 % 5).items():
        for cohort in tasks:
            ids = [task.device for task in cohort.devices]
            assert ids == sorted(ids), node


@pytest.mark.parametrize("samples", [None, lambda device: 16])
def test_equal_devices_are_divided_by_their_number(samples):
    found = shares(assign(cohorts_of(range(10)), [7, 8, 9], True, samples=samples))
    assert sorted(map(len, found.values())) == [3, 3, 4]


def test_a_cohort_that_cannot_be_divided_stays_on_one_node():
    found = shares(assign(cohorts_of(range(5), range(5, 7)), [7, 9], False, samples=lambda device: 10))
    assert found == {7: [0, 1, 2, 3, 4], 9: [5, 6]}
