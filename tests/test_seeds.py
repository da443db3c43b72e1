import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from fsl import seeds


@pytest.mark.slow
def test_equal_arguments_give_equal_seeds_in_every_process():
    code = "from fsl import seeds; print(seeds.derive(7, 'batches', device=3, round=2, step=5))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert int(other) == seeds.derive(7, "batches", device=3, round=2, step=5)


def test_every_argument_matters():
    base = {"segment": "front", "device": 1, "round": 1, "step": 1}
    variants = [base, *({**base, k: v} for k, v in {"segment": "back", "device": 2, "round": 2, "step": 2}.items())]
    values = {seeds.derive(0, "forward", **v) for v in variants}
    values |= {seeds.derive(1, "forward", **base), seeds.derive(0, "batches", **base)}
    assert len(values) == 7


def test_neighbouring_steps_do_not_collide():
    stream = seeds.Stream(0, "forward", device=0, round=1)
    assert len({stream.at(step) for step in range(100_000)}) == 100_000
    assert all(0 <= stream.at(step) < 2**63 for step in range(1000))


def test_reseed_makes_dropout_repeat():
    seeds.reseed(5)
    first = F.dropout(torch.ones(50))
    seeds.reseed(5)
    assert torch.equal(first, F.dropout(torch.ones(50)))


def test_generators_follow_their_seed():
    draws = [seeds.torch_generator(0, "x", step=s) for s in (0, 0, 1)]
    a, b, c = (torch.rand(4, generator=g) for g in draws)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert seeds.numpy_generator(0, "x").random() == seeds.numpy_generator(0, "x").random()
