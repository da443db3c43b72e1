"""The edge's queue holds against what queueing theory says."""

import numpy as np
import pytest

from fsl.inference.many_devices.edge_queue import EdgeQueue


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_is_that_of_an_m_d_1_queue(load):
    """Poisson arrivals, equal services: rho s / (2 (1 - rho)) in the mean (Pollaczek and Khinchine)."""
    copies, tasks, service = 500, 3000, 2.0
    draws = np.random.default_rng(0)
    queue, waits = EdgeQueue(copies), []
    for _ in range(tasks):
        queue.work(draws.exponential(service / load, copies))
        waits.append(queue.arrive(np.arange(copies), np.full(copies, service)))
    expected = load * service / (2 * (1 - load))
    assert np.mean(waits[500:]) == pytest.approx(expected, rel=0.02)
    # Who comes finds the edge free with 1 - rho.
    assert (np.array(waits[500:]) == 0).mean() == pytest.approx(1 - load, abs=0.005)


def test_tasks_that_come_at_once_are_served_in_order():
    queue = EdgeQueue(3)
    queue.arrive(np.array([1]), np.array([5.0]))
    waits = queue.arrive(np.array([0, 0, 1, 1, 1]), np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert waits.tolist() == [0.0, 1.0, 5.0, 8.0, 12.0]
    assert queue.backlog.tolist() == [3.0, 17.0, 0.0]
