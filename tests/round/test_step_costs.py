"""A step costs no more than it did, in what can be counted: a slowdown is seen without a clock.

A count above its bound is not wrong in itself: find out what is new in a step, by the names in the message, and take it
out, or raise the bound in the same commit and say there what the step got for it. Where a count has fallen well below
its bound, lower the bound, so that it guards what was won.
"""

from functools import partial

import pytest
import torch
from fsl.strategies import PSL, SplitFedV1

import fsl
from fsl.data import TensorExamples
from fsl.flower.inline_grid import InlineGrid
from fsl.models import MLP
from tests.helpers.counting import counted

pytestmark = pytest.mark.slow

DEVICES, STEPS, ROWS = 4, 3, 8
LABELS = ROWS * 8  # bytes
STRATEGIES = {"SplitFed V1": SplitFedV1, "PSL": PSL}

# Of one step of one device, with its edge's part: at most a twentieth above what was counted when it was written.
BOUNDS = {
    ("SplitFed V1", "operations"): 84,
    ("SplitFed V1", "copies"): 2,
    ("SplitFed V1", "tensors allocated"): 27,
    ("SplitFed V1", "bytes allocated"): 472_000,
    ("SplitFed V1", "function calls"): 194,
    ("PSL", "operations"): 62,
    ("PSL", "copies"): 1.25,
    ("PSL", "tensors allocated"): 20,
    ("PSL", "bytes allocated"): 477_000,
    ("PSL", "function calls"): 172,
}
MEANING = {
    "operations": "each is a call into torch, some microseconds with tensors as small as these",
    "copies": "smashed data, gradients or states are copied once more; with larger models that is memory bandwidth",
    "tensors allocated": "something is made anew in each step that could be kept or done in place",
    "bytes allocated": "a step holds more memory, or moves more of it, than its batch and gradients need",
    "function calls": "Python between torch's operations, some tenths of a microsecond each",
}


def train(strategy, epochs):
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    rows = DEVICES * STEPS * ROWS
    data = TensorExamples(torch.randn(rows, 1, 28, 28, generator=draws), torch.arange(rows) % 10)
    options = {"devices": DEVICES, "rounds": 1, "batch_size": ROWS, "local_epochs": epochs, "evaluate_every": 0}
    return fsl.simulate(MLP((1, 28, 28), 10), data, strategy=strategy(), progress=False, **options)


@pytest.fixture(scope="module", params=STRATEGIES)
def counts(request):
    """A strategy's name, with what a run of one epoch took, and one of two: they differ by the steps of an epoch."""
    kind = STRATEGIES[request.param]
    train(kind, 1)
    return request.param, *(counted(partial(train, kind, epochs)) for epochs in (1, 2))


@pytest.mark.parametrize("kind", MEANING)
def test_a_step_takes_no_more_than_it_did(counts, kind):
    name, one, two = counts
    steps = DEVICES * STEPS
    found, most = two.per(steps, one)[kind], BOUNDS[name, kind]
    assert found <= most, (
        f"{name}: {found:g} {kind} in a step, bound {most:g}. {MEANING[kind][0].upper()}{MEANING[kind][1:]}. "
        f"Most in a step: {two.most(steps, one, kind)}"
    )


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_takes_one_message_to_each_node(name, monkeypatch):
    sent = []
    answer = InlineGrid.answer
    monkeypatch.setattr(InlineGrid, "answer", lambda self, *given: sent.extend(given[0]) or answer(self, *given))
    train(STRATEGIES[name], 1)
    assert len(sent) == 1, f"{name}: {len(sent)} messages in a round; a node gets one, with all of its devices' work"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_sends_no_more_than_it_did(name):
    row = train(STRATEGIES[name], 1).metrics[0]
    values = ROWS * 128 * 4  # of smashed data in float32, and as many of their gradient
    for way, besides in (("up_bytes", LABELS + 90), ("down_bytes", 62)):
        found = row[way] / (DEVICES * STEPS)
        assert found <= values + besides, (
            f"{name}: {found:g} {way} in a step, of which {values} are values; {besides} were labels and headers. A "
            "frame has grown: by a field, a name, or a dtype"
        )
