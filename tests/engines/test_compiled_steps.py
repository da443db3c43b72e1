"""Compiled steps equal the loop; where torch makes no code, or other numbers, a stack goes on as it is and says so."""

import logging

import pytest
import torch
from fsl.strategies import PSL, SGLR, SplitFedV1, SplitFedV3

import fsl
from fsl.data import Dirichlet, TensorExamples
from fsl.errors import ConfigError
from fsl.models import MLP
from tests.helpers.engine_runs import assert_near, by
from tests.helpers.runs import ADAM, SGD, KillAfter, KilledError, assert_same_run, run
from tests.helpers.small import small_model, small_task

UNEVEN = Dirichlet(0.3, min_samples=3)
PLACES = ("front", "back")
OPTIONS = {"cut": "stage1", "optimizer": ADAM, "devices": 4, "batch_size": 8}


def perceptron():
    torch.manual_seed(0)
    return MLP((1, 8, 8), 4, hidden=(24, 12))


def compiled(strategy, model=None, engine="stacked", **options):
    return run(strategy, model, backend=fsl.Backend(engine=engine, compile=True), **options)


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for torch's compiler by `change`, and notes the rows' shapes of which it was asked to make code."""

    def of(change):
        shapes = set()

        def compile(function, **options):
            def made(parameters, buffers, rows):
                shapes.add(rows.shape)
                return change(function, parameters, buffers, rows)

            return made

        monkeypatch.setattr(torch, "compile", compile)
        return shapes

    return of


def as_it_is(function, *given):
    return function(*given)


# By torch's compiler, whose first code takes it half a minute on a small machine


@pytest.fixture
def made(monkeypatch):
    """Notes what torch's compiler was given."""
    seen, compile = [], torch.compile

    def noted(function, **options):
        seen.append(function)
        return compile(function, **options)

    monkeypatch.setattr(torch, "compile", noted)
    return seen


def assert_compiled_equals_the_loop(strategy, model, engine, tolerance, caplog, **options):
    loop = by("loop", strategy, model, **options)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert_near(loop, compiled(strategy, model, engine, **options), tolerance)
    assert not [line for line in caplog.messages if "backend." in line]


def in_dtype(norm, dtype):
    task = small_task().train
    return small_model(norm).to(dtype), TensorExamples(task.inputs.to(dtype), task.targets)


@pytest.mark.shows
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize(
    "strategy", [SplitFedV1(), SplitFedV3(), PSL(), SGLR(phi=0.5, alpha=0.5)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(
    ("norm", "dtype", "tolerance"), [("batch", torch.float64, 1e-9), ("none", torch.float32, 1e-5)], ids=["64", "32"]
)
def test_compiled_steps_equal_the_loop(strategy, optimizer, norm, dtype, tolerance, caplog, made):
    model, data = in_dtype(norm, dtype)
    options = {"optimizer": optimizer, "devices": 4, "batch_size": 8, "data": data, "rounds": 3}
    assert_compiled_equals_the_loop(strategy, model, "stacked", tolerance, caplog, **options)
    assert len(made) == (1 if isinstance(strategy, PSL) else 2)


@pytest.mark.shows
def test_one_step_in_common_compiled_equals_the_loop(caplog, made):
    model, data = in_dtype("none", torch.float64)
    options = {"devices": 4, "batch_size": 96, "data": data}
    assert_compiled_equals_the_loop(SplitFedV1(), model, "pooled", 1e-9, caplog, **options)
    assert len(made) == 2


# Where there is no compiled code


def broken(function, *given):
    raise RuntimeError("no such instruction")


def slightly_off(function, parameters, buffers, rows):
    return function(parameters, buffers, rows) * 1.001


class OffBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.001


def off_in_gradients(function, parameters, buffers, rows):
    return OffBackwards.apply(function(parameters, buffers, rows))


def off_in_buffers(function, parameters, buffers, rows):
    outputs = function(parameters, buffers, rows)
    for tensor in buffers.values():
        if not tensor.is_floating_point():  # others are part of the graph
            tensor.add_(1)
    return outputs


def in_another_dtype(function, parameters, buffers, rows):
    return function(parameters, buffers, rows).double()


NONE_MADE = {
    "fails": (broken, "torch does not compile it (RuntimeError: no such instruction)"),
    "outputs": (slightly_off, "compiled code gives other numbers"),
    "gradients": (off_in_gradients, "compiled code gives other numbers"),
    "buffers": (off_in_buffers, "compiled code gives other numbers"),
    "dtype": (in_another_dtype, "compiled code gives other numbers"),
}


@pytest.mark.parametrize(("change", "reason"), NONE_MADE.values(), ids=NONE_MADE)
def test_without_compiled_code_that_is_right_a_stack_goes_on_as_it_is_and_says_why_once(
    change, reason, compiler, caplog, stacked
):
    compiler(change)
    model, options = small_model("batch"), {"optimizer": SGD, "batch_size": 8, "partition": UNEVEN}
    with caplog.at_level(logging.WARNING):
        found = compiled(SplitFedV1(), model, **options)
    assert_same_run(by("stacked", SplitFedV1(), model, **options), found)
    said = [line for line in caplog.messages if "backend.compile" in line]
    assert said == [f"backend.compile=true does not apply to all: the {s} runs uncompiled: {reason}" for s in PLACES]
    assert stacked


def test_without_a_c_compiler_the_log_says_so(compiler, caplog, monkeypatch):
    compiler(broken)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        compiled(PSL(), perceptron(), rounds=1, **OPTIONS)
    assert sum("runs uncompiled: this machine has no C++ compiler (g++, clang++)" in m for m in caplog.messages) == 1


def test_code_that_fails_later_is_left_for_what_was_compiled(compiler, caplog):
    calls = []

    def fails_later(function, *given):
        calls.append(None)
        return broken(function) if len(calls) > 3 else function(*given)

    compiler(fails_later)
    with caplog.at_level(logging.WARNING):
        found = compiled(PSL(), perceptron(), **OPTIONS)
    assert_same_run(by("stacked", PSL(), perceptron(), **OPTIONS), found)
    assert len(calls) == 4


def test_few_shapes_are_compiled_and_the_others_run_as_they_are(compiler, caplog):
    shapes = compiler(as_it_is)
    options = OPTIONS | {"batch_size": 3, "partition": Dirichlet(0.3, min_samples=2), "devices": 8}
    with caplog.at_level(logging.WARNING):
        found = compiled(PSL(), perceptron(), **options)
    assert_same_run(by("stacked", PSL(), perceptron(), **options), found)
    assert len(shapes) == 4
    assert sum("the front has batches of more than 4 shapes" in line for line in caplog.messages) == 1


def test_nothing_is_compiled_unless_it_is_asked_for(compiler):
    shapes = compiler(as_it_is)
    by("stacked", PSL(), perceptron(), rounds=1, **OPTIONS)
    assert not shapes


def test_linear_layers_without_weights_of_their_own_are_not_compiled_and_the_log_says_so(compiler, caplog):
    shapes = compiler(as_it_is)
    with caplog.at_level(logging.WARNING):
        compiled(SplitFedV1(), perceptron(), rounds=1, **OPTIONS | {"optimizer": SGD})
    assert not shapes
    assert sum("linear layers without weights of their own" in line for line in caplog.messages) == 2


def test_bfloat16_is_not_compiled_and_the_log_says_so(compiler, caplog):
    shapes = compiler(as_it_is)
    with caplog.at_level(logging.WARNING):
        compiled(SplitFedV1(), perceptron(), rounds=1, precision="bfloat16", **OPTIONS)
    assert not shapes
    assert sum("precision=bfloat16 stays as it is" in line for line in caplog.messages) == 1


# The option


@pytest.mark.parametrize(
    ("engine", "why"), [("loop", "is held against"), ("fused", "the loop's bits"), ("auto", "engines as they are")]
)
def test_engines_that_are_not_compiled_refuse_it_in_one_line(engine, why):
    with pytest.raises(ConfigError) as raised:
        fsl.Backend(engine=engine, compile=True)
    text = str(raised.value)
    assert text.startswith(f"backend.compile=true with backend.engine={engine}: ")
    assert why in text
    assert text.endswith("use backend.engine=stacked or backend.engine=pooled")
    assert "\n" not in text


@pytest.mark.parametrize("first", [True, False])
def test_a_compiled_run_is_resumed_compiled(first, compiler, tmp_path):
    compiler(as_it_is)
    one, other = (fsl.Backend(engine="stacked", compile=value) for value in (first, not first))
    options = OPTIONS | {"rounds": 2, "out": tmp_path}
    with pytest.raises(KilledError):
        run(PSL(), perceptron(), backend=one, observers=[KillAfter(1)], **options)
    with pytest.raises(ConfigError, match=r"backend\.compile"):
        run(PSL(), perceptron(), backend=other, resume=True, **options)
    run(PSL(), perceptron(), backend=one, resume=True, **options)
