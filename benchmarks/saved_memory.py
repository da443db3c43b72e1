"""What `memory=error_bounded` saves of activations, what that does to gradients, and what to accuracy.

    python -m benchmarks.saved_memory bytes --data data/cifar10             # saved bytes and peak, batch 64
    python -m benchmarks.saved_memory error --data data/cifar10             # predicted and measured error of gradients
    python -m benchmarks.saved_memory accuracy --data data/cifar10 --seeds 0 1 2 --epochs 30

ResNet-18 on CIFAR-10, SGD 0.05 with momentum 0.9. Saved bytes are those of unique storages that autograd's graph keeps
between forward and backward, without parameters, with the indices of pooling. The peak is the largest resident memory
(VmHWM) of a fresh process that takes `--steps` steps, less what it had before the first; the kernel resets the mark.
glibc keeps much of what is freed between steps; so it is measured a second time with MALLOC_MMAP_THRESHOLD_=65536,
by which every tensor of 64 KiB goes back when it is freed.
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fsl.codecs import bit_planes, error_bounded
from fsl.data import Augmentation, Examples, TaskData, cifar10
from fsl.memory import ErrorBoundedMemory
from fsl.models import ResNet18


def saved_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Returns the bytes that autograd saves of a forward pass, each storage once, without parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(inputs)
    return sum(storage.nbytes() for place, storage in found.items() if place not in own)


class Trainer:
    """A model with its optimizer, and with compressed activations or without."""

    def __init__(self, seed: int, memory: ErrorBoundedMemory | None, rate: float, accelerator: str = "cpu"):
        torch.manual_seed(seed)
        self.accelerator = torch.device(accelerator)
        self.model = ResNet18((3, 32, 32), 10).to(self.accelerator)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=rate, momentum=0.9)
        self.saver = None if memory is None else memory.saver(self.parameters)
        self.saved: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the outputs."""
        with nullcontext() if self.saver is None else self.saver.saving():
            outputs: Tensor = self.model(inputs.to(self.accelerator))
        if self.saver is not None:
            self.saved.append(self.saver.bytes)
        return outputs

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Take a step; returns its loss."""
        loss = functional.cross_entropy(self.forward(inputs), targets.to(self.accelerator))
        loss.backward()
        self.optimizer.step()
        if self.saver is not None:
            self.saver.stepped(self.optimizer)
        self.optimizer.zero_grad()
        return float(loss.detach())


def batches(data: Examples, size: int, seed: int, augment: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields shuffled batches for ever."""
    generator = torch.Generator().manual_seed(seed)
    augmentation = Augmentation(crop=4, flip=True) if augment else None
    while True:
        for rows in torch.randperm(len(data), generator=generator).split(size):
            if len(rows) == size:
                inputs, targets = data.batch(rows)
                assert isinstance(inputs, Tensor)
                yield inputs if augmentation is None else augmentation(inputs, generator), targets


def peak(arguments: argparse.Namespace) -> dict[str, float]:
    """Returns how far a few steps raise this process's resident memory, in MB, and their CPU seconds."""
    trainer = Trainer(0, None if arguments.exact else memory_of(arguments), arguments.rate)
    feed = [batch for batch, _ in zip(batches(load(arguments).train, arguments.batch, 0), range(arguments.steps))]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.process_time()
    for inputs, targets in feed:
        trainer.step(inputs, targets)
    seconds = (time.process_time() - began) / len(feed)
    return {"peak_mb": (resident("VmHWM") - before) / 1e3, "cpu_seconds": seconds}


def resident(field: str) -> int:
    """Returns a field of this process's memory, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def show_bytes(arguments: argparse.Namespace) -> None:
    """Print saved bytes by step, and peaks of fresh processes."""
    trainer, feed = Trainer(0, memory_of(arguments), arguments.rate), batches(load(arguments).train, arguments.batch, 0)
    inputs, targets = next(feed)
    exact = saved_bytes(copy.deepcopy(trainer.model), inputs)
    print(f"saved bytes, batch {arguments.batch}: {exact / 1e6:.1f} MB as they are")
    for step in range(arguments.steps):
        trainer.step(inputs, targets)
        now = trainer.saved[-1]
        print(f"  step {step + 1}: {now / 1e6:.1f} MB, {exact / now:.2f} times fewer", flush=True)
        inputs, targets = next(feed)
    ways: tuple[tuple[str, list[str]], ...] = (("as they are", ["--exact"]), ("error_bounded", []))
    for (name, more), threshold in product(ways, ("", "65536")):
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.saved_memory", "peak", *sys.argv[2:], *more],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | ({"MALLOC_MMAP_THRESHOLD_": threshold} if threshold else {}),
        )
        found = json.loads(ran.stdout.splitlines()[-1])
        what = f"peak above the model, {name}{', freed tensors given back' if threshold else ''}"
        print(f"{what}: {found['peak_mb']:.0f} MB; {found['cpu_seconds']:.1f} CPU s a step", flush=True)


def show_error(arguments: argparse.Namespace) -> None:
    """Print, by convolution, the predicted and the measured standard deviation of the weight gradient's error."""
    trainer, feed = Trainer(0, memory_of(arguments), arguments.rate), batches(load(arguments).train, arguments.batch, 0)
    assert trainer.saver is not None
    for _ in range(arguments.steps):
        trainer.step(*next(feed))
    inputs, targets = next(feed)
    twin = copy.deepcopy(trainer.model)
    used, bound_of = {}, trainer.saver.bounds.bound

    def noted(weight: Tensor, largest: float, rho: float) -> float:
        used[id(weight)] = bound_of(weight, largest, rho), rho
        return used[id(weight)][0]

    trainer.saver.bounds.bound = noted  # type: ignore[method-assign,assignment]
    norms: dict[int, Tensor] = {}

    def note_norm(layer: nn.Module, _: object, gradients: tuple[Tensor, ...] | Tensor) -> None:
        assert isinstance(gradients, tuple)
        norms[id(layer.weight)] = gradients[0].flatten(2).norm(dim=(0, 2))

    for module in trainer.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_full_backward_hook(note_norm)
    functional.cross_entropy(trainer.forward(inputs), targets).backward()
    functional.cross_entropy(twin(inputs), targets).backward()
    print(f"{'weight':28} {'bound':>9} {'predicted':>10} {'measured':>10} {'ratio':>6} {'of momentum':>11}")
    ratios = []
    for (name, weight), other in zip(trainer.model.named_parameters(), twin.parameters(), strict=True):
        if weight.dim() == 4:
            bound, rho = used[id(weight)]
            predicted = bound * math.sqrt(rho / 3) * float(norms[id(weight)].square().mean().sqrt())
            assert weight.grad is not None
            assert other.grad is not None
            measured = float((weight.grad - other.grad).square().mean().sqrt())
            momentum = float(trainer.optimizer.state[weight]["momentum_buffer"].abs().mean())
            ratios.append(measured / predicted)
            errors = f"{predicted:10.2e} {measured:10.2e} {ratios[-1]:6.2f} {measured / momentum:11.4f}"
            print(f"{name:28} {bound:9.2e} {errors}")
    print(f"median ratio {statistics.median(ratios):.2f}")


class _Whole:
    """Reads whole numbers that `unpacked` keeps in two to four bytes each, in place of `bit_planes.Planes`."""

    def __init__(self, kept: Tensor):
        self._kept, self._place = kept, 0

    def numbers(self, kinds: Tensor) -> Tensor:
        """Returns the numbers (blocks * `BLOCK`,) int32 of the next part."""
        width, count = int(kinds[0]), len(kinds) * bit_planes.BLOCK
        start, self._place = self._place, self._place + count * width
        kept = self._kept[start : self._place]
        if width == 2:
            return kept.view(torch.int16).int()
        whole = functional.pad(kept.view(count, width), (4 - width, 0)).view(torch.int32).flatten()
        return whole >> 8 * (4 - width)

    def refuse_more(self) -> None:
        """Do nothing: nobody else wrote these bytes."""


def _kept_whole(numbers: Tensor) -> tuple[Tensor, Tensor]:
    largest = int(numbers.abs().amax())
    width = next(width for width in (2, 3, 4) if largest < 1 << (8 * width - 1))
    kept = numbers.short() if width == 2 else numbers
    bits = kept.view(torch.uint8) if width == 2 else kept.view(torch.uint8).view(-1, 4)[:, :width].flatten()
    return numbers.new_full((len(numbers) // bit_planes.BLOCK,), width, dtype=torch.uint8), bits


@contextmanager
def unpacked() -> Iterator[None]:
    """A context in which quantized numbers are not packed into bits: the same training to the bit, sooner."""
    names = {"encode_part": _kept_whole, "decode_part": lambda kinds, reader: reader.numbers(kinds), "Planes": _Whole}
    before = {name: getattr(error_bounded, name) for name in names}
    try:
        for name, other in names.items():
            setattr(error_bounded, name, other)
        yield
    finally:
        for name, own in before.items():
            setattr(error_bounded, name, own)


def show_accuracy(arguments: argparse.Namespace) -> None:
    """Print test accuracies by seed, with compressed activations and without."""
    data = load(arguments)
    assert data.test is not None
    found: dict[str, list[float]] = {"as they are": [], "error_bounded": []}
    steps = arguments.epochs * (len(data.train) // arguments.batch)
    for seed in arguments.seeds:
        for name, memory in (("as they are", None), ("error_bounded", memory_of(arguments))):
            trainer = Trainer(seed, memory, arguments.rate, arguments.accelerator)
            feed = batches(data.train, arguments.batch, seed, True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizer, steps)
            with unpacked() if arguments.unpacked else nullcontext():
                for _ in range(steps):
                    trainer.step(*next(feed))
                    schedule.step()
            found[name].append(100 * accuracy(trainer.model, data.test))
            known = trainer.saved and not arguments.unpacked
            fewer = f", {sum(trainer.saved) / len(trainer.saved) / 1e6:.1f} MB saved" if known else ""
            print(f"seed {seed}, {name}: {found[name][-1]:.2f}%{fewer}", flush=True)
    means = {name: statistics.mean(values) for name, values in found.items()}
    print(", ".join(f"{name} {mean:.2f}%" for name, mean in means.items()))
    pairs = [b - a for a, b in zip(found["as they are"], found["error_bounded"], strict=True)]
    print("differences by seed: " + ", ".join(f"{pair:+.2f}" for pair in pairs))
    print(f"difference {means['error_bounded'] - means['as they are']:+.2f} points over {len(arguments.seeds)} seeds")


def accuracy(model: nn.Module, data: Examples) -> float:
    """Returns the share of rows whose class a model tells."""
    model.eval()
    place = next(model.parameters()).device
    with torch.no_grad():
        right = 0
        for rows in torch.arange(len(data)).split(500):
            inputs, targets = data.batch(rows)
            assert isinstance(inputs, Tensor)
            right += int((model(inputs.to(place)).argmax(1).cpu() == targets).sum())
    return right / len(data)


def load(arguments: argparse.Namespace) -> TaskData:
    """Returns CIFAR-10, its first rows."""
    return cifar10(arguments.data, limit=arguments.limit, test_limit=arguments.test_limit)


def memory_of(arguments: argparse.Namespace) -> ErrorBoundedMemory:
    """Returns the compression that was asked for."""
    return ErrorBoundedMemory(arguments.fraction, arguments.first, not arguments.convolutions_only)


def main(given: Sequence[str] | None = None) -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["bytes", "error", "accuracy", "peak"])
    parser.add_argument("--data", default="data/cifar10", help="folder with train.parquet and test.parquet")
    parser.add_argument("--limit", type=int, help="training rows")
    parser.add_argument("--test-limit", type=int, help="test rows")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of bytes, error and peak")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--fraction", type=float, default=ErrorBoundedMemory.fraction)
    parser.add_argument("--first", type=float, default=ErrorBoundedMemory.first)
    parser.add_argument("--convolutions-only", action="store_true", help="leave inputs of batch norms as they are")
    parser.add_argument("--accelerator", default="cpu", help="of accuracy: cpu or cuda")
    parser.add_argument("--unpacked", action="store_true", help="of accuracy: the same numbers, sooner, in more memory")
    parser.add_argument("--exact", action="store_true", help="of peak: without compression")
    arguments = parser.parse_args(given)
    if arguments.what == "peak":
        print(json.dumps(peak(arguments)))
    else:
        {"bytes": show_bytes, "error": show_error, "accuracy": show_accuracy}[arguments.what](arguments)


if __name__ == "__main__":
    main()
