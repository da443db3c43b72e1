"""Runs by an engine, and how near two of them must be."""

import pytest
import torch

import fsl
from fsl.data import TensorExamples
from tests.helpers.runs import run


def in_float64(model, task):
    inputs, targets = task.train.inputs.double(), task.train.targets
    return model.double(), TensorExamples(inputs, targets)


def by(engine, strategy, model=None, **options):
    return run(strategy, model, backend=fsl.Backend(engine=engine), **options)


def assert_near(one, other, tolerance=1e-5):
    """Weights, and what a run tells of each round, but for rounding; bytes and counts exactly."""
    for name, tensor in one.states["back"].items():
        torch.testing.assert_close(other.states["back"][name], tensor, rtol=tolerance, atol=tolerance)
    for name, tensor in ({} if one.model is None else one.model.state_dict()).items():
        torch.testing.assert_close(other.model.state_dict()[name], tensor, rtol=tolerance, atol=tolerance)
    for a, b in zip(one.metrics, other.metrics, strict=True):
        for key in a:
            if isinstance(a[key], float) and key not in ("seconds", "sim_seconds", "energy_joules"):
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-5), key
            elif key == "lost":
                assert a[key].keys() == b[key].keys()
            elif key != "seconds":
                assert a[key] == b[key], key
