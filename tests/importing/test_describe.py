"""Objects as text: whatever changes what an object does shows, and nothing that differs between processes."""

import collections
import dataclasses
import enum
import functools
import logging
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from fsl.data import Augmentation, Dirichlet
from fsl.importing.description import describe

SCALE = 2.0


def scaled(outputs, targets):
    return SCALE * (outputs - targets).square().mean()


def through_another(outputs, targets):
    return scaled(outputs, targets)


@functools.lru_cache
def remembered(x):
    return x + 1


@functools.lru_cache
def remembered_too(x):
    return x + 1


def made(margin, power=2):
    return lambda outputs, targets: ((outputs - targets).abs() - margin).pow(power).mean()


class Weighted(nn.Module):
    def __init__(self, alpha=1.0, hidden=0.0):
        super().__init__()
        self.alpha, self._hidden = alpha, hidden

    def forward(self, outputs, targets):
        return self.alpha * (outputs - targets).abs().mean()


class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("one", "two")

    def __init__(self, one):
        self.one = one


@dataclasses.dataclass
class Data:
    alpha: float = 0.5
    of: object = None


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Lazy:
    def __init__(self):
        self.share = 0.5

    @functools.cached_property
    def table(self):
        return [1, 2, 3]


def class_with(body):
    space = {"__name__": __name__}
    exec(f"class Own:\n    def __call__(self, x):\n        return {body}", space)
    return space["Own"]()


# Torch's compilers take seconds to come: they are called for where a test runs, not where it is collected.
DIFFERENT = {
    "losses": [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.3),
        nn.CrossEntropyLoss(label_smoothing=0.4),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0])),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(ignore_index=3),
        nn.BCEWithLogitsLoss(),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
        nn.HuberLoss(),
        nn.HuberLoss(delta=2.0),
        nn.MSELoss(),
    ],
    "losses in TorchScript": lambda: [
        torch.jit.script(nn.CrossEntropyLoss()),
        torch.jit.script(nn.CrossEntropyLoss(label_smoothing=0.3)),
        torch.jit.script(nn.CrossEntropyLoss(weight=torch.ones(3))),
        torch.jit.script(nn.CrossEntropyLoss(weight=torch.zeros(3))),
    ],
    "own modules": [Weighted(), Weighted(alpha=2.0), Weighted(hidden=1.0)],
    "modules of modules": [nn.Sequential(Weighted()), nn.Sequential(Weighted(2.0)), nn.Sequential(nn.ReLU())],
    "functions": [scaled, through_another, nn.functional.cross_entropy, nn.functional.mse_loss, torch.sigmoid],
    "wrapped functions": [remembered, remembered_too, torch.no_grad()(scaled), torch.no_grad()(through_another)],
    "methods of types": [str.upper, str.lower, "a".upper, "b".upper, np.mean, np.median, np.add, torch.Tensor.add],
    "closures": [made(0.1), made(0.2), made(0.1, 3)],
    "lambdas": [lambda x: x + 1, lambda x: x + 2, lambda x: x - 1, lambda x, y=1: x + y, lambda x, y=2: x + y],
    "partials": [functools.partial(scaled, 1), functools.partial(scaled, 2), functools.partial(scaled, targets=1)],
    "methods": [Weighted().forward, Weighted(2.0).forward, [1].append, [2].append],
    "private attributes": [Plain(_a=1), Plain(_a=2), Plain(_b=1)],
    "slots": [Slotted(1), Slotted(2)],
    "nested objects": [Data(of=Plain(a=1)), Data(of=Plain(a=2)), Data(of=[Plain(a=1)])],
    "arrays": [Plain(a=np.arange(3)), Plain(a=np.arange(3.0)), Plain(a=np.arange(4)), Plain(a=torch.arange(3))],
    "objects in arrays": [np.array([None, 1]), np.array([None, 2])],
    "long lists": [list(range(1000)), [*range(999), 0]],
    "long texts": ["x" * 1000, "x" * 999 + "y"],
    "long mappings": [dict.fromkeys(range(99)), dict.fromkeys(range(98))],
    "enums": [Colour.RED, Colour.BLUE],
    "code of classes": [class_with("x + 1"), class_with("x + 2"), class_with("(lambda y: y)(x)")],
    "bytes": [b"a" * 100, b"a" * 99 + b"b"],
    "generators with a seed": [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)],
}


def made_now(values):
    return values() if callable(values) else values


@pytest.mark.parametrize("values", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_does_something_else_is_described_otherwise(values):
    shown = [describe(value) for value in made_now(values)]
    assert len(set(shown)) == len(shown)
    assert not any("0x" in text for text in shown)
    assert all(len(text) < 5000 for text in shown)


def test_a_number_that_a_function_reads_of_its_module_counts(monkeypatch):
    before = describe(scaled), describe(through_another)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert describe(scaled) != before[0]
    assert describe(through_another) != before[1]


SAME = {
    "mappings in another order": [{"a": 1, "b": 2}, {"b": 2, "a": 1}],
    "attributes of another order": [Plain(a={"x": 1, "y": 2}), Plain(a={"y": 2, "x": 1})],
    "modules to be compiled": lambda: [nn.ReLU(), torch.compile(nn.ReLU())],
    "functions to be compiled": lambda: [scaled, torch.compile(scaled)],
    "modules in other modes": [nn.Dropout(0.3), nn.Dropout(0.3).eval()],
    "closures of the same values": [made(0.1), made(0.1)],
    "locks": [threading.Lock(), threading.Lock()],
    "generators of any state": [np.random.default_rng(), np.random.default_rng()],
    "generators of Python": [random.Random(1), random.Random(2)],
    "objects without anything": [object(), object()],
}


@pytest.mark.parametrize("values", SAME.values(), ids=SAME.keys())
def test_what_does_the_same_is_described_alike(values):
    assert len({describe(value) for value in made_now(values)}) == 1


def test_a_cached_value_changes_nothing():
    lazy, fresh = Lazy(), Lazy()
    assert lazy.table
    assert describe(lazy) == describe(fresh)


def test_words_are_those_that_reports_and_people_read():
    assert describe(Dirichlet(0.3)) == "fsl.data.partitioners.Dirichlet {'alpha': 0.3, 'min_samples': 1}"
    assert describe(Augmentation(4, True)) == "fsl.data.augment.Augmentation {'crop': 4, 'flip': True}"
    assert describe(Plain(a=1, _b=None, c=[0.5, "x"])) == f"{__name__}.Plain {{'a': 1, '_b': None, 'c': [0.5, 'x']}}"
    assert describe(nn.CrossEntropyLoss(label_smoothing=0.3)) == "torch.nn.CrossEntropyLoss(label_smoothing=0.3)"
    assert describe(nn.CrossEntropyLoss(weight=torch.ones(3))).startswith(
        "torch.nn.CrossEntropyLoss(weight=tensor(3 float32)#"
    )
    assert describe(nn.Sequential(nn.Dropout(0.2), nn.ReLU())) == (
        "torch.nn.Sequential(0=torch.nn.Dropout(p=0.2), 1=torch.nn.ReLU())"
    )
    assert describe(nn.functional.mse_loss) == "torch.nn.functional.mse_loss"
    assert describe(logging.getLogger("some.name")) == "logging.Logger some.name"
    assert describe(collections.OrderedDict(b=1, a=2)) == "{'b': 1, 'a': 2}"
    assert describe({3, 1, 2}) == "{1, 2, 3}"


class Hidden:
    def __getattribute__(self, name):
        raise RuntimeError("not to be looked at")


def test_an_object_that_cannot_be_looked_at_is_its_class():
    assert describe(Plain(a=Hidden())) == f"{__name__}.Plain {{'a': '<{__name__}.Hidden: RuntimeError>'}}"


def test_cycles_end():
    loop = Data()
    loop.of = [loop]
    assert describe(loop) == f"{__name__}.Data {{'alpha': 0.5, 'of': ['<cycle 2>']}}"
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert len(describe(deep)) < 1000
    wide = [1]
    for _ in range(100):
        wide = [wide, wide]
    assert len(describe(wide)) < 10_000


@pytest.mark.slow
def test_descriptions_are_the_same_in_another_process():
    def values():
        return made(0.1), through_another, Weighted(2.0), Plain(a={"x", "y", "z"}), class_with("x + 1"), Colour.RED

    script = "from tests.importing.test_describe import *\nfor value in [{}]: print(describe(value))".format(
        "made(0.1), through_another, Weighted(2.0), Plain(a={'x', 'y', 'z'}), class_with('x + 1'), Colour.RED"
    )
    hashed = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=hashed)
    assert done.stdout.splitlines() == list(map(describe, values()))
