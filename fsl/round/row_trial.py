"""Runs a model's segments on a few rows, as in training, with the same random numbers for every row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fsl import seeds
from fsl.round.workload import Worker, Workload
from fsl.segments.tensor_places import Slot, tables

Loss = Callable[[Tensor, Tensor], Tensor]


class SameForAllRows(TorchDispatchMode):
    """Draws random tensors (B, ...) once for a row and repeats them, so that they do not depend on rows or on B."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation; torch calls it for each."""
        options = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or not args:
            return func(*args, **options)
        first, name = args[0], str(func).removeprefix("aten.")
        if name in ("native_dropout.default", "bernoulli.default"):  # their probabilities belong to each row
            kept = torch.rand_like(first[:1], dtype=torch.float32).expand(first.shape)
            if name == "bernoulli.default":
                return (kept < first).to(first.dtype)
            mask = kept >= args[1]
            return first * mask / (1 - args[1] or 1.0), mask
        if isinstance(first, Tensor) and first.dim() and not any(isinstance(a, Tensor) for a in args[1:]):
            if name.split(".")[0].endswith("_"):
                return first.copy_(func(first[:1].clone(), *args[1:], **options).expand_as(first))
            if name.split(".")[0].endswith("_like"):
                return func(first[:1], *args[1:], **options).expand_as(first).clone()
        at = next((i for i, a in enumerate(args) if isinstance(a, list | tuple) and len(a)), None)
        if at is not None and name.split(".")[0] in ("rand", "randn", "randint"):
            shape = list(args[at])
            drawn = func(*args[:at], [1, *shape[1:]], *args[at + 1 :], **options)
            return drawn.expand(shape).clone()
        return func(*args, **options)


@contextmanager
def same_randomness(accelerator: torch.device) -> Iterator[None]:
    """Make every draw the same each time and for each row; restores the generators afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with seeds.DEFAULT_GENERATOR, torch.random.fork_rng(devices=devices), seeds.pythons_generators(0):
        seeds.reseed(0, accelerator)
        with SameForAllRows():
            yield


@dataclass(frozen=True)
class Pass:
    """Result of one forward: each segment's output, and by segment and name the buffers that it changed."""

    outputs: Mapping[str, Tensor]
    lasting: Mapping[str, Tensor]
    transient: Mapping[str, Tensor]


class RowTrial:
    """Runs copies of a model's segments behind each other, in their training modes.

    It moves trained weights a little at random, so that a gate that is still zero hides nothing. `alone`: only the
    first segment.
    """

    def __init__(self, workload: Workload, alone: bool = False):
        worker = Worker(workload)
        self.accelerator = worker.accelerator
        chain = list(worker.chain.items())[: 1 if alone else None]
        self.segments: dict[str, nn.Module] = {name: segment.module for name, segment in chain}
        self._hooks: list[Any] = []
        self._move_weights()

    def _move_weights(self) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = {id(p): p for module in self.segments.values() for p in module.parameters() if p.requires_grad}
        with torch.no_grad():
            for weight in weights.values():
                size = max(0.1, float(weight.std())) if weight.numel() > 1 else 0.1
                weight.add_(0.1 * size * torch.randn(weight.shape, generator=generator).to(weight))

    def forward(self, inputs: Tensor) -> Pass:
        """Run all segments on inputs (B, ...), and restore their buffers."""
        before = {
            f"{name}.{key}": (slot, slot[0][slot[1]], kind)
            for name, module in self.segments.items()
            for kind, table in enumerate(tables(module))
            for key, slot in table.items()
            if kind or not isinstance(slot[0][slot[1]], nn.Parameter)
        }
        values = {name: None if tensor is None else tensor.clone() for name, (_, tensor, _) in before.items()}
        try:
            with torch.no_grad(), same_randomness(self.accelerator):
                outputs = self._outputs(inputs)
            changed: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
            for name, ((table, key), _, kind) in before.items():
                if isinstance(now := table[key], Tensor) and not _equal(now, values[name]):
                    changed[kind][name] = now.clone()
            return Pass(outputs, *changed)
        finally:
            for name, (slot, tensor, _) in before.items():
                _put_back(slot, tensor, values[name])

    def tried(self, inputs: Tensor) -> Pass | None:
        """Like `forward`, but None for inputs that the model refuses, such as values that no sample has."""
        try:
            return self.forward(inputs)
        except Exception:
            return None

    def _outputs(self, values: Tensor) -> dict[str, Tensor]:
        outputs = {}
        for name, module in self.segments.items():
            values = outputs[name] = module(values.clone())
        return outputs

    def watched(self, inputs: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
        """Returns segment and name, module and output of each module that returns a tensor, by the end of its call."""
        seen: list[tuple[str, nn.Module, Tensor]] = []

        def hook(name: str) -> Callable[..., None]:
            return lambda module, _, output: (
                seen.append((name, module, output.detach().clone())) if isinstance(output, Tensor) else None
            )

        handles = [
            module.register_forward_hook(hook(f"{segment}'s '{name}'" if name else segment))
            for segment, whole in self.segments.items()
            for name, module in whole.named_modules()
        ]
        try:
            self.forward(inputs)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def hook(self, names: Sequence[str]) -> dict[str, nn.Parameter]:
        """Put Opacus's per-sample gradient hooks on these segments; returns their trained parameters by name."""
        from opacus.grad_sample import GradSampleHooks  # Opacus takes a while to import

        from fsl.privacy.private_learner import hookable

        found: dict[str, nn.Parameter] = {}
        for name in names:
            module = self.segments[name]
            own = {f"{name}'s '{key}'": p for key, p in module.named_parameters() if p.requires_grad}
            if own:
                hookable(module)
                self._hooks.append(GradSampleHooks(module))
                found |= own
        return found

    def gradients(
        self,
        parameters: Mapping[str, nn.Parameter],
        inputs: Tensor,
        targets: Tensor,
        loss: Loss,
        by_sample: bool = True,
    ) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """Returns, by parameter, each sample's gradient (B, ...) by Opacus (`by_sample`), and that of the loss."""
        for hooks in self._hooks:
            hooks.hooks_enabled = by_sample
        for parameter in parameters.values():
            parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]
        for module in self.segments.values():
            for part in module.modules():
                part.__dict__.pop("activations", None)
                part.__dict__.pop("max_batch_len", None)
        with same_randomness(self.accelerator):
            *_, outputs = self._outputs(inputs).values()
            loss(outputs, targets).backward()
        found: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        for name, parameter in parameters.items():
            samples = getattr(parameter, "grad_sample", None)
            samples = torch.cat(samples) if isinstance(samples, list) else samples
            found[name] = samples, parameter.grad
        return found


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _put_back(slot: Slot, tensor: Tensor | None, value: Tensor | None) -> None:
    table, key = slot
    if tensor is not None and value is not None:
        with torch.no_grad():
            tensor.copy_(value)
    table[key] = tensor
