"""Lean fronts on CIFAR-10: accuracy by SplitFed V1, and what a front takes of one core, by what was done to it.

    python -m benchmarks.lean_fronts CIFAR10_FOLDER --seeds 0 1 2 --out lean_fronts.json

CIFAR10_FOLDER holds train.parquet and test.parquet as the Hub's uoft-cs/cifar10 has them. Each model (VGG5 and ResNet-8
with batch normalisation, cut at its default) is trained plain and with each front from the same first weights' seed.
"int8, trained" rounds in training (QAT); "int8, calibrated" is the plain run's model with ranges of 32 batches of
training images (PTQ); accuracy and time of both are those of the front that really computes in int8. "pruned, trained
on" is the plain run's model, pruned, behind `--more-rounds` more. Accuracy has 95 % t-intervals over seeds.
Milliseconds are a core's own time (what other processes take does not count) for the front and one image; all fronts of
a model take turns, among them the plain one, and that with its normalisation folded into the weights and channels last,
which is the least that floats take here. `--untrained`: models that are measured with random weights, without accuracy.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsl.strategies import SplitFedV1
from scipy import stats
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fsl
from fsl import seeds
from fsl.costs.work_counting import work_of
from fsl.data import TaskData, TensorExamples, cifar10
from fsl.files import write_json
from fsl.inference.profiles import machine_in_words
from fsl.models import VGG5, VGG16, ResNet8, ResNet18
from fsl.models.lean import calibrated, ghosted, has_vnni, int8_front, magnitude_pruned, pruned, quantized, unmasked

MODELS: dict[str, Callable[[], Any]] = {
    "VGG5": lambda: VGG5((3, 32, 32), 10, norm="batch"),
    "ResNet8": lambda: ResNet8((3, 32, 32), 10),
}
UNTRAINED: dict[str, Callable[[], Any]] = {
    "ResNet18": lambda: ResNet18((3, 32, 32), 10),
    "VGG16": lambda: VGG16((3, 32, 32), 10),
}
PLAIN, TRAINED_ON = "plain", "pruned .50, trained on"
INT8, CALIBRATED = "int8, trained", "int8, calibrated"
MAGNITUDE = "magnitude .50"
FRONTS: dict[str, Callable[[nn.Module, str], nn.Module]] = {
    PLAIN: lambda model, cut: model,
    "ghost": lambda model, cut: ghosted(model, until=cut),
    INT8: lambda model, cut: quantized(model, until=cut),
    "pruned .25": lambda model, cut: pruned(model, 0.25, cut),
    "pruned .50": lambda model, cut: pruned(model, 0.5, cut),
    MAGNITUDE: lambda model, cut: magnitude_pruned(model, 0.5, cut),
}


@dataclass(frozen=True)
class FrontFigures:
    """A model's front: accuracy by seed, milliseconds of an image on one core, bytes and multiply-adds of an image."""

    model: str
    front: str
    accuracy: tuple[float, ...]
    ms_p50: float
    ms_p90: float
    parameter_bytes: int
    peak_bytes: int
    crossing_bytes: int
    macs: int

    def interval(self) -> str:
        """Returns the mean accuracy with its 95 % interval over seeds."""
        values = np.array(self.accuracy)
        if len(values) < 2:
            return f"{values.mean():.3f}" if len(values) else ""
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        return f"{values.mean():.3f} ± {half:.3f}"


def made(kind: Callable[[], Any], change: Callable[[nn.Module, str], nn.Module], seed: int) -> nn.Module:
    """Returns a model with a front, its weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "lean-fronts"))
        model = kind()
        return change(model, model.default_cut)


def trained(
    model: nn.Module, cut: str, data: TaskData, options: argparse.Namespace, rounds: int, seed: int
) -> nn.Module:
    """Returns a model that SplitFed V1 has trained."""
    run = fsl.simulate(
        model,
        data,
        strategy=SplitFedV1(),
        cut=cut,
        devices=options.devices,
        rounds=rounds,
        batch_size=32,
        optimizer=fsl.Optimizer("torch.optim.Adam", options.lr),
        evaluate_every=0,
        seed=seed,
    )
    assert run.model is not None
    return run.model.eval()


def all_fronts(kind: Callable[[], Any], data: TaskData, options: argparse.Namespace, seed: int) -> dict[str, nn.Module]:
    """Returns the trained models of a seed by what their front is, for inference."""
    cut = kind().default_cut
    found: dict[str, nn.Module] = {}
    for name, change in FRONTS.items():
        began = time.perf_counter()
        found[name] = trained(made(kind, change, seed), cut, data, options, options.rounds, seed)
        print(f"  seed {seed}: {name}, {time.perf_counter() - began:.0f} s", flush=True)
    found[TRAINED_ON] = trained(pruned(found[PLAIN], 0.5, cut), cut, data, options, options.more_rounds, seed)
    assert isinstance(data.train, TensorExamples)
    batches = data.train.inputs[: 32 * 32].split(32)
    found[CALIBRATED] = int8_front(calibrated(found[PLAIN], batches, cut))
    found[INT8] = int8_front(found[INT8])
    found[MAGNITUDE] = unmasked(found[MAGNITUDE])
    return found


def random_fronts(kind: Callable[[], Any], data: TaskData) -> dict[str, nn.Module]:
    """Returns models with random weights by what their front is; int8 by ranges of training images."""
    cut = kind().default_cut
    found = {name: made(kind, change, 0).eval() for name, change in FRONTS.items() if name != INT8}
    assert isinstance(data.train, TensorExamples)
    found[CALIBRATED] = int8_front(calibrated(found[PLAIN], data.train.inputs[:96].split(32), cut))
    found[MAGNITUDE] = unmasked(found[MAGNITUDE])
    return found


def accuracy(model: nn.Module, examples: Any) -> float:
    """Returns the share of examples that a model gets right."""
    with torch.no_grad():
        right = [
            (model(inputs).argmax(1) == targets).sum()
            for inputs, targets in zip(examples.inputs.split(250), examples.targets.split(250))
        ]
    return float(sum(right)) / len(examples)


def milliseconds(fronts: dict[str, nn.Module], image: torch.Tensor, repetitions: int) -> dict[str, tuple[float, float]]:
    """Returns median and 90th percentile of each front's time for an image; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in fronts}
    with torch.no_grad():
        for repetition in range(repetitions + 20):
            for name, front in fronts.items():
                began = time.thread_time()
                front(image)
                if repetition >= 20:
                    times[name].append(1e3 * (time.thread_time() - began))
    return {name: (float(np.median(each)), float(np.percentile(each, 90))) for name, each in times.items()}


FLOOR = "plain, folded, channels last"


def folded(model: nn.Module) -> nn.Module:
    """Returns a copy with batch normalisation in the weights of the convolutions in front of it, channels last."""
    made = copy.deepcopy(model).eval()
    for parent in list(made.modules()):
        children = list(parent.named_children())
        for (conv, before), (norm, behind) in zip(children, children[1:]):
            if isinstance(before, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d):
                setattr(parent, conv, fuse_conv_bn_eval(before, behind))
                setattr(parent, norm, nn.Identity())
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def figures_of(
    name: str, models: dict[str, nn.Module], cut: str, accuracies: dict[str, list[float]], options: argparse.Namespace
) -> list[FrontFigures]:
    """Measure the fronts of a model."""
    image = torch.randn(1, 3, 32, 32, generator=seeds.torch_generator(0, "lean-fronts-image"))
    fronts = {front: fsl.split(model, cut)["front"].eval() for front, model in models.items()}
    fronts[FLOOR] = fsl.split(folded(models[PLAIN]), cut)["front"].eval()
    times = milliseconds(fronts, image, options.repetitions)
    rows = []
    for what, front in fronts.items():
        weights = [*front.parameters(), *front.buffers()]
        work = work_of(partial(front, image), [image], weights)
        with torch.no_grad():
            crossing = front(image).nbytes
        stored = sum(tensor.nbytes for tensor in front.state_dict().values())
        scores = tuple(accuracies.get(PLAIN if what == FLOOR else what, ()))
        rows.append(FrontFigures(name, what, scores, *times[what], stored, work.peak_bytes, crossing, work.macs))
    return rows


def print_rows(rows: list[FrontFigures]) -> None:
    """Print a table as the docs have it."""
    print("| | accuracy | ms, p50 | p90 | weights, kB | activations at most, kB | crosses, kB | MMAC |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        sizes = " | ".join(f"{size / 1e3:.1f}" for size in (row.parameter_bytes, row.peak_bytes, row.crossing_bytes))
        print(
            f"| {row.model}, {row.front} | {row.interval()} | {row.ms_p50:.2f} | {row.ms_p90:.2f} | {sizes} | "
            f"{row.macs / 1e6:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--untrained", nargs="*", default=list(UNTRAINED), choices=list(UNTRAINED))
    parser.add_argument("--images", type=int, default=800, help="training images")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--more-rounds", type=int, default=2, help="of a finished run's pruned model")
    parser.add_argument("--lr", type=float, default=2e-3, help="of Adam")
    parser.add_argument("--repetitions", type=int, default=300, help="of a front's time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar10(str(options.folder), options.images, options.test_images)
    measured = {name: random_fronts(UNTRAINED[name], data) for name in options.untrained}
    machine = f"{machine_in_words()}; {'with' if has_vnni() else 'without'} VNNI"
    print(machine)
    rows: list[FrontFigures] = []
    for name, models in measured.items():
        rows += figures_of(name, models, UNTRAINED[name]().default_cut, {}, options)
    for name in options.models:
        print(name, flush=True)
        accuracies: dict[str, list[float]] = {}
        for seed in options.seeds:
            models = all_fronts(MODELS[name], data, options, seed)
            for front, model in models.items():
                accuracies.setdefault(front, []).append(accuracy(model, data.test))
        rows += figures_of(name, models, MODELS[name]().default_cut, accuracies, options)
    print_rows(rows)
    if options.out is not None:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        write_json(options.out, {"options": given, "machine": machine, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
