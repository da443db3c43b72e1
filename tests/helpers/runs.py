"""Short runs on a small task, and what two of them have in common where they are equal to the bit."""

import inspect
import pickle

import pytest
import torch
from fsl.strategies import PSL, SGLR, CycleSL, DecoupledSL, FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

import fsl
from fsl.privacy import DPSGD, Privacy
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.each_time import each_time
from tests.helpers.small import small_model, small_task

SGD = Optimizer("torch.optim.SGD", lr=0.05)
MOMENTUM = Optimizer("torch.optim.SGD", lr=0.05, options={"momentum": 0.9, "weight_decay": 1e-4})
ADAM = Optimizer("torch.optim.Adam", lr=0.003)
KEPT = Optimizer("torch.optim.Adam", lr=0.003, reset=False)


KINDS = [("none", 0.0), ("batch", 0.0), ("none", 0.3), ("batch", 0.3)]
OPTIMIZERS = {"sgd": SGD, "momentum": MOMENTUM, "adam": ADAM, "adam-kept": KEPT}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
# Every kind of model, every optimizer, and every optimizer on the model that has all: what an optimizer keeps goes by a
# parameter's name, so that their whole product finds no more.
CASES = dict(
    zip(
        ["plain-sgd", "bn-momentum", "drop-adam", *(f"bn+drop-{name}" for name in OPTIMIZERS)],
        [
            *((*kind, one) for kind, one in zip(KINDS[:3], (SGD, MOMENTUM, ADAM))),
            *((*KINDS[3], one) for one in OPTIMIZERS.values()),
        ],
        strict=True,
    )
)
models_and_optimizers = pytest.mark.parametrize(("norm", "dropout", "optimizer"), CASES.values(), ids=CASES)
# For an equality that follows from others: each time where most is kept, of the model and of the optimizer.
hardest = pytest.mark.parametrize(
    ("norm", "dropout", "optimizer"), each_time(CASES, ["bn-momentum", "bn+drop-adam-kept"])
)


def run(strategy, model=None, *, data=None, devices=3, rounds=2, **options):
    options = {"cut": "pool", "batch_size": 16, "optimizer": SGD} | options
    return fsl.simulate(
        model or small_model(), data or small_task(), strategy=strategy, devices=devices, rounds=rounds, **options
    )


_RUNS: dict[bytes, object] = {}  # by what they were asked with


def run_once(strategy, **options):
    """As `run`, and the same run for all tests of a process that ask for it alike: what others are held against.

    Not for a test that changes the code under it, or the run that it gets.
    """
    kind = type(strategy)
    chosen = {name: getattr(strategy, name) for name in inspect.signature(kind).parameters}  # a run leaves more in it
    asked = pickle.dumps((kind, chosen, options))
    if asked not in _RUNS:
        _RUNS[asked] = run(strategy, **options)
    return _RUNS[asked]


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), f"{name} differs by {(one[name] - other[name]).abs().max()}"


def assert_same_run(one, other):
    for segment in one.states:
        assert_same_bits(one.states[segment], other.states[segment])
    for a, b in zip(one.metrics, other.metrics, strict=True):
        ignored = {"seconds"}
        assert {k: v for k, v in a.items() if k not in ignored} == {k: v for k, v in b.items() if k not in ignored}


STRATEGIES = [
    SplitFedV1(),
    SplitFedV2(),
    SplitFedV2(order="round"),
    SplitFedV3(),
    VanillaSL(),
    FedAvg(),
    PSL(),
    SGLR(phi=0.5, alpha=0.5),
    DecoupledSL(),
    CycleSL(passes=2, window=2),
]


def name_of(strategy):
    return f"{type(strategy).__name__}-{getattr(strategy, 'order', '')}"


strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=name_of)


class KilledError(Exception):
    pass


class KillAfter(fsl.Observer):
    def __init__(self, round):
        self.round = round

    def on_round(self, row):
        if row["round"] == self.round:
            raise KilledError


def assert_same_result(one, other):
    for segment in one.states:
        assert_same_bits(one.states[segment], other.states[segment])
    for a, b in zip(one.metrics, other.metrics, strict=True):
        ignored = {"seconds", "lost"}
        assert {k: v for k, v in a.items() if k not in ignored} == {k: v for k, v in b.items() if k not in ignored}


DP = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5))
