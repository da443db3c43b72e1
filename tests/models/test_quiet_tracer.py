"""Threads trace models, and run others, beside each other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from fsl.inference.separable.separable_graph import traced_graph
from fsl.models import ResNet8
from fsl.models.lean import plan_pruning
from tests.helpers.small import small_model


def test_what_other_threads_run_and_trace_is_not_disturbed():
    model, rows, ends = ResNet8((1, 8, 8), 4).eval(), torch.randn(2, 1, 8, 8), threading.Event()
    wanted = model(rows)

    def run():
        count = 0
        while not ends.is_set():
            assert torch.allclose(model(rows), wanted, atol=1e-5)  # kernels differ by thread
            count += 1
        return count

    def trace(number):
        own = ResNet8((1, 8, 8), 4)
        if number % 2:
            return len(traced_graph(own).nodes)
        return plan_pruning(small_model("batch"), 0.5, "conv2").in_words()

    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(run)
        found = list(pool.map(trace, range(12)))
        ends.set()
        assert running.result() > 0
    assert [len(set(found[k::2])) for k in range(2)] == [1, 1]
