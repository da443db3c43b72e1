"""Tries a stack on two devices beside plain copies of its segment, before anything is trained with it."""

import copy

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.engines.stack import StackPool, Starts
from fsl.faults import said
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe, set_learning_rate
from fsl.segments.precision import Precision, computing
from fsl.segments.states import State
from fsl.segments.tensor_places import tables

_LEAST_RATE = 0.01  # so that steps show beside rounding
_NEAR = 1e-3  # of the largest change, which leaves room for a rectifier that rounding turns over
_NEAR_SHORT = 2**-7  # in bfloat16: two units in the last of its eight binary digits


def trial(
    pool: StackPool,
    runtime: SegmentRuntime,
    recipe: OptimizerRecipe,
    start: State,
    inputs: Tensor,
    rate: float,
    precision: Precision = "float32",
) -> str | None:
    """Train two devices by a stack, and by themselves; returns why they differ.

    `inputs` (2 * R, ...): each device's rows, the same in all steps. What is compared is the outputs and the change of
    the mean weights, under gradients at the outputs that are drawn at random. None: they do not differ, and nothing was
    drawn at random, which in a stack would be drawn for all devices together. `precision`: of the stack.
    """
    heard = runtime.name != "front" and inputs.is_floating_point()  # who hears of gradients at the inputs
    bound = _NEAR if precision == "float32" else _NEAR_SHORT
    stack, rate = pool.example, max(rate, _LEAST_RATE)
    steps, shares = 1 if stack.one_step else 3, torch.tensor([0.25, 0.75], dtype=torch.float64)
    with seeds.left_as_found(), seeds.pythons_generators(0), seeds.DEFAULT_GENERATOR:
        seeds.reseed(0, runtime.accelerator)
        alone = [_Alone(runtime, recipe, start, rate, precision) for _ in range(2)]
        generator, drawn = torch.Generator().manual_seed(1), seeds.drawn(runtime.accelerator)
        try:
            stack.begin(Starts(2, shared=start), rate, steps * (len(inputs) // 2))
            for number in range(steps):
                given, own = (inputs.clone().requires_grad_(heard) for _ in range(2))
                together = stack.forward(given.clone())
                apart = torch.cat([one.forward(rows.clone()) for one, rows in zip(alone, own.chunk(2))])
                same = (together.shape, together.dtype) == (apart.shape, apart.dtype)
                if not same or not near(together, apart, apart.detach().abs().max(), bound):
                    return f"the {runtime.name} computes rows of several devices otherwise than those of one"
                if apart.requires_grad:
                    weights = shares if stack.one_step else torch.ones(2, dtype=torch.float64)
                    _send_back(together, apart, weights, generator)
                if heard and not stack.one_step and not _same_gradient(given, own, bound):
                    return f"the {runtime.name} hands on gradients of several devices otherwise than those of one"
                stack.step(2 if number + 1 < steps else 0)
                for one in alone:
                    one.step()
            mean = stack.mean(shares.to(runtime.accelerator))
        except Exception as error:  # of torch or of the model: whatever it is, the loop trains it
            return f"the {runtime.name} cannot be stacked ({said(error)[:160]})"
        if seeds.drawn(runtime.accelerator) != drawn:
            return f"the {runtime.name} draws at random, each device from a stream of its own"
    if (changed := alone[0].changed()) is not None:
        return f"'{changed}' of the {runtime.name}, which is no part of its state, changes from step to step"
    trained = [one.state().flats for one in alone]
    for dtype, flat in mean.flats.items():
        rows = torch.stack([one[dtype] for one in trained])
        wanted = shares.to(rows.device) @ rows.double() if dtype.is_floating_point else rows.amax(0)
        if not _same(runtime, dtype, flat, wanted, start.flats[dtype], bound):
            return f"the {runtime.name} steps several devices otherwise than one"
    return None


def _send_back(together: Tensor, apart: Tensor, weights: Tensor, generator: torch.Generator) -> None:
    """Send one gradient at the outputs (2 * R, ...) back both ways; `weights` (2,): what each device's rows count."""
    gradient = torch.randn(apart.shape, generator=generator).to(apart) / len(apart)
    apart.backward(gradient)
    by_row = weights.to(gradient).repeat_interleave(len(gradient) // 2)
    together.backward(gradient * by_row.view(-1, *[1] * (gradient.dim() - 1)))


def _same_gradient(given: Tensor, own: Tensor, bound: float) -> bool:
    """Compares what a back hands on to fronts; None: nothing."""
    if given.grad is None or own.grad is None:
        return given.grad is own.grad
    return near(given.grad, own.grad, own.grad.abs().max(), bound)


def _same(
    runtime: SegmentRuntime, dtype: torch.dtype, found: Tensor, wanted: Tensor, start: Tensor, bound: float
) -> bool:
    """Compares states of one dtype (size,): the whole beside its largest change, and each buffer beside its own."""
    buffers = [field for field in runtime.layout.fields if field.dtype == dtype and field.trainable is None]
    parts = [slice(None), *(slice(field.start, field.start + field.shape.numel()) for field in buffers)]
    if not dtype.is_floating_point:
        return torch.equal(found, wanted)
    change = (wanted - start).abs()
    return all(near(found[part], wanted[part], change[part].max(), bound) for part in parts if change[part].numel())


class _Alone:
    """A copy of a segment that one device trains, as torch does it."""

    def __init__(
        self, runtime: SegmentRuntime, recipe: OptimizerRecipe, start: State, rate: float, precision: Precision
    ):
        self._layout, self._precision = runtime.layout, precision
        self._accelerator = runtime.accelerator
        self._module = copy.deepcopy(runtime.copied())
        self._places, self._transients = tables(self._module)
        with torch.no_grad():
            for name, tensor in self._layout.unpack(start).items():
                table, key = self._places[name]
                table[key].copy_(tensor)
        trained = [self._at(field.name) for field in self._layout.fields if field.trainable]
        self._optimizer = recipe.build([one for one in trained if isinstance(one, nn.Parameter)])
        set_learning_rate(self._optimizer, rate)

    def _at(self, name: str) -> Tensor:
        table, key = self._places[name]
        found: Tensor = table[key]
        return found

    def forward(self, rows: Tensor) -> Tensor:
        with computing(self._precision, self._accelerator):
            found: Tensor = self._module(rows)
        return found

    def step(self) -> None:
        if self._optimizer is not None:
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def changed(self) -> str | None:
        """Returns the name of a buffer that is no part of the state and is not as it was first."""
        for name, first in self._layout.transients.items():
            table, key = self._transients[name]
            now = table[key]
            if now is not first and (now is None or first is None or not torch.equal(now.to(first), first)):
                return name
        return None

    def state(self) -> State:
        return self._layout.pack({field.name: self._at(field.name).detach() for field in self._layout.fields})


def near(found: Tensor, wanted: Tensor, size: Tensor, bound: float = _NEAR) -> bool:
    """Returns whether two tensors differ by rounding at most, beside numbers of this size."""
    difference = (found.detach().double() - wanted.detach().double()).abs()
    return not difference.numel() or bool(difference.max() <= bound * size.double() + 1e-6)
