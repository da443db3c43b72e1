"""Early exits of ResNet-8 on CIFAR-10: accuracy against multiply-adds and latency, heads and their training compared.

    python -m benchmarks.early_exits CIFAR10_FOLDER --images 10000 --test-images 2000 --epochs 15 --seeds 0 1 2 --out X

CIFAR10_FOLDER holds train.parquet and test.parquet as the Hub's uoft-cs/cifar10 has them. Of the training images 70 %
train backbone and exits, 20 % (`extra`) are more data without labels and train the predictors, and on 10 %
(`validation`) thresholds are chosen; what the tables have was measured on test images. Exits lie behind block1 and
block2. Seconds are computed from multiply-adds and rates that are options, and are no measurement; activations that
cross count one byte a value (int8), the image its 3,072 bytes. A section on pictures with synthetic tones has data of
its own. X gets early_exits.json and a figure.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import nn

from fsl import seeds
from fsl.codecs.distillation import fine_tune
from fsl.data import TensorExamples, cifar10, digits_with_tones
from fsl.errors import ConfigError
from fsl.files import write_json
from fsl.inference import SplitPoints
from fsl.inference.exits import (
    ConvExit,
    Distillation,
    ExitModel,
    ExitOutputs,
    ExitSeconds,
    MLPExit,
    SLViTExit,
    ThresholdLines,
    Thresholds,
    bypass_at,
    choose_thresholds,
    collect_outputs,
    copycat,
    exit_seconds,
    train_exits,
    train_predictors,
    width_for_macs,
)
from fsl.inference.exits.exit_training import How
from fsl.inference.exits.threshold_search import BETAS, ChosenThresholds
from fsl.models import PictureAndTone, ResNet8
from fsl.run.plotting import STYLES, new_figures, save_figure

POINTS = ("block1", "block2")
Model = TypeVar("Model", bound=nn.Module)
IMAGE_BYTES = 3 * 32 * 32
KINDS = {"mlp": MLPExit, "conv": ConvExit, "sl_vit": SLViTExit}


@dataclass(frozen=True)
class Row:
    """A figure of one seed: which table it belongs to, of what, and its numbers."""

    table: str
    what: str
    seed: int
    numbers: dict[str, float]


@dataclass(frozen=True)
class Parts:
    """The images of one seed, and the backbone that was trained on them."""

    train: TensorExamples
    extra: TensorExamples
    validation: TensorExamples
    test: TensorExamples
    backbone: nn.Sequential
    seed: int


def drawn(make: Callable[[], Model], seed: int) -> Model:
    """Returns a model whose weights are drawn from the seed."""
    with seeds.left_as_found(), seeds.DEFAULT_GENERATOR:
        seeds.reseed(seeds.derive(seed, "early-exits-backbone"))
        return make()


def parts_of(options: argparse.Namespace, seed: int) -> Parts:
    """Divide the images by the seed, and train a backbone."""
    data = cifar10(str(options.folder), options.images, options.test_images)
    assert isinstance(data.train, TensorExamples)
    assert isinstance(data.test, TensorExamples)
    order = torch.randperm(len(data.train), generator=seeds.torch_generator(seed, "early-exits-rows"))
    shares = [round(0.7 * len(order)), round(0.2 * len(order))]
    train, extra, validation = (data.train.subset(rows) for rows in order.tensor_split([shares[0], sum(shares)]))
    backbone = drawn(lambda: ResNet8((3, 32, 32), 10), seed)
    decay = max(1, round(0.7 * options.epochs))
    fine_tune(
        backbone,
        train,
        frozen=(),
        epochs=options.epochs,
        learning_rate=2e-3,
        decay_at=decay,
        seed=seed,
        optimizer=torch.optim.Adam,
    )
    return Parts(train, extra, validation, data.test, backbone.eval(), seed)


def heads_at(backbone: nn.Module, example: torch.Tensor, kind: str, macs: float) -> dict[str, Any]:
    """Returns heads of a kind, at each point as wide as so many multiply-adds allow."""
    points = SplitPoints(backbone, example, POINTS)
    shapes = {name: tuple(points.crossing(name).values.shape[1:]) for name in POINTS}
    return {name: KINDS[kind](width=width_for_macs(kind, shape, 10, macs)) for name, shape in shapes.items()}


def exit_model(parts: Parts, kind: str, macs: float) -> ExitModel:
    """Returns new exits on the backbone: of a kind at so many multiply-adds, or the linear ones."""
    example = parts.train.inputs[:3]
    heads = dict.fromkeys(POINTS, "linear") if kind == "linear" else heads_at(parts.backbone, example, kind, macs)
    return ExitModel(parts.backbone, heads, example, seed=parts.seed)


def equal_macs(parts: Parts, options: argparse.Namespace) -> Iterator[Row]:
    """Heads of different kinds at equal multiply-adds, on the frozen backbone; and whether that stayed as it was."""
    for kind in ("linear", *KINDS):
        model = exit_model(parts, kind, options.head_macs)
        before = model.points.digest()
        train_exits(model, parts.train, epochs=options.head_epochs, seed=parts.seed)
        first, second, final = collect_outputs(model, parts.test).means()
        numbers = {
            "macs at block1": model.costs.heads[0],
            "macs at block2": model.costs.heads[1],
            "block1 %": 100 * first,
            "block2 %": 100 * second,
            "final %": 100 * final,
            "backbone to the bit": float(model.points.digest() == before),
        }
        yield Row("heads at equal multiply-adds", kind, parts.seed, numbers)


def more_data(parts: Parts, options: argparse.Namespace) -> Iterator[Row]:
    """Copycat and distillation on the same extra images without labels, from the same heads, for as many epochs."""
    first = exit_model(parts, "sl_vit", options.head_macs)
    train_exits(first, parts.train, epochs=options.head_epochs, seed=parts.seed)
    common = {"epochs": options.head_epochs, "learning_rate": 3e-4, "seed": parts.seed}
    for what in ("labels alone", "copycat", "distillation, T = 1", "distillation, T = 4"):
        model = copy.deepcopy(first)
        if what == "copycat":
            train_exits(model, copycat(model, parts.extra.inputs), **common)
        elif what != "labels alone":
            train_exits(model, parts.extra.inputs, distillation=Distillation(1.0, float(what[-1])), **common)
        block1, block2, _ = collect_outputs(model, parts.test).means()
        yield Row("extra images without labels", what, parts.seed, {"block1 %": 100 * block1, "block2 %": 100 * block2})


def along_macs(parts: Parts, options: argparse.Namespace) -> Iterator[Row]:
    """Accuracy against multiply-adds, by one threshold for both exits, for each way of training."""
    ways: tuple[tuple[How, Distillation | None], ...] = (
        ("frozen", None),
        ("frozen", Distillation()),
        ("layer_wise", None),
        ("joint", None),
    )
    for how, told in ways:
        own = Parts(parts.train, parts.extra, parts.validation, parts.test, copy.deepcopy(parts.backbone), parts.seed)
        model = exit_model(own, "conv", options.head_macs)
        epochs = options.head_epochs if how == "frozen" else options.epochs
        train_exits(model, parts.train, how=how, distillation=told, epochs=epochs, seed=parts.seed)
        outputs = collect_outputs(model, parts.test)
        for beta in BETAS:
            replay = outputs.replay(beta)
            numbers = {"Mmacs": float(replay.cost(model.costs).mean()) / 1e6, "%": 100 * replay.quality(outputs)}
            name = f"{how}{'' if told is None else ', distilled'}"
            yield Row("accuracy against multiply-adds", f"{name}, beta {beta:g}", parts.seed, numbers)


def break_even(parts: Parts, options: argparse.Namespace) -> Iterator[Row]:
    """A predictor in front of heavy heads and of light ones: what the rule says, and what inference saves."""
    for what, kind, macs in (("heavy (conv)", "conv", options.heavy_macs), ("light (linear)", "linear", 0.0)):
        model = exit_model(parts, kind, macs)
        train_exits(model, parts.train, epochs=options.head_epochs, seed=parts.seed)
        confidence = collect_outputs(model, parts.extra).confidence
        assert confidence is not None
        beta = tuple(float(one.quantile(0.7)) for one in confidence)  # about three in ten leave
        train_predictors(model, parts.extra, Thresholds(beta), epochs=options.head_epochs, seed=parts.seed)
        outputs = collect_outputs(model, parts.test)
        plain = outputs.replay(Thresholds(beta))
        for eta in (0.3, 0.5, 0.7):
            thresholds = Thresholds(beta, (eta, 0.0))
            balance = bypass_at(outputs, thresholds, "block1", model.costs)
            result = model.infer(parts.test.inputs, thresholds)
            saved = float(plain.cost(model.costs).mean() - result.macs.mean())
            numbers = {
                "head macs": balance.exit_cost,
                "predictor macs": balance.predictor_cost,
                "q": balance.sent,
                "f": balance.missed,
                "C_rest": balance.rest_cost,
                "saved by the rule": balance.saved,
                "saved as measured": saved,
                "pays": float(balance.pays),
                "% with": 100 * float((result.outputs.argmax(1) == parts.test.targets).float().mean()),
                "% without": 100 * plain.quality(outputs),
            }
            yield Row("a predictor at block1", f"{what}, eta {eta}", parts.seed, numbers)


def along_bandwidth(parts: Parts, options: argparse.Namespace) -> Iterator[Row]:
    """The best thresholds of each cut at each bandwidth, chosen on validation images, measured on test images."""
    model = exit_model(parts, "conv", options.head_macs)
    train_exits(model, parts.train, distillation=Distillation(), epochs=options.head_epochs, seed=parts.seed)
    confidence = collect_outputs(model, parts.extra).confidence
    assert confidence is not None
    middle = [float(one.median()) for one in confidence]
    train_predictors(model, parts.extra, middle, epochs=options.head_epochs, seed=parts.seed)
    chosen_on, outputs = collect_outputs(model, parts.validation), collect_outputs(model, parts.test)
    for cut in ("input", *POINTS, "output"):
        size = IMAGE_BYTES if cut == "input" else model.points.crossing(cut).elements
        seconds = exit_seconds(
            model,
            cut,
            device_macs_per_second=1e6 * options.device_mmacs,
            edge_macs_per_second=1e6 * options.edge_mmacs,
            crossing_bytes=size,
            link_s=options.link_ms / 1e3,
        )
        for mbit in options.mbits:
            without = Thresholds((2.0, 2.0))
            yield _timed(parts, outputs, seconds, f"cut {cut}, {mbit:g} Mbit/s, no exits", without, mbit)
        for most in options.max_ms:
            yield from _within(parts, chosen_on, outputs, seconds, cut, most, options)


def _within(
    parts: Parts,
    chosen_on: ExitOutputs,
    outputs: ExitOutputs,
    seconds: ExitSeconds,
    cut: str,
    most: float,
    options: argparse.Namespace,
) -> Iterator[Row]:
    """The best thresholds of mean latency at most `most` ms, at each bandwidth where there are some; and lines."""
    found: list[ChosenThresholds] = []
    for mbit in options.mbits:
        try:
            found += choose_thresholds(chosen_on, seconds, [mbit], most / 1e3, betas=BETAS, etas=(0.0, 0.3, 0.6))
        except ConfigError:
            continue  # none are quick enough
        name = f"cut {cut}, {mbit:g} Mbit/s, at most {most:g} ms"
        yield _timed(parts, outputs, seconds, name, found[-1].thresholds, mbit)
    if len(found) == len(options.mbits):
        lines = ThresholdLines.through(found)
        for mbit in options.mbits:
            name = f"cut {cut}, {mbit:g} Mbit/s, by lines for {most:g} ms"
            yield _timed(parts, outputs, seconds, name, lines.thresholds_at(mbit), mbit)


def _timed(
    parts: Parts, outputs: ExitOutputs, seconds: ExitSeconds, what: str, thresholds: Thresholds, mbit: float
) -> Row:
    replay = outputs.replay(thresholds)
    numbers = {
        "ms": 1e3 * float(seconds.of(replay, mbit).mean()),
        "%": 100 * replay.quality(outputs),
        "crosses %": 100 * float(seconds.crosses(replay).double().mean()),
    }
    return Row("accuracy against latency", what, parts.seed, numbers)


def fusion(seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """Exits behind the first stage of pictures with synthetic tones: of both branches, and of pictures alone."""
    data = digits_with_tones(picture_noise=1.5, tone_noise=1.5, seed=seed)
    backbone, example = drawn(PictureAndTone, seed), data.train.batch(torch.arange(3))[0]
    model = ExitModel(backbone, {"stage1": "fusion"}, example, seed=seed)
    train_exits(model, data, how="joint", epochs=options.tone_epochs, seed=seed)
    for what, head in (("pictures and tones", "fusion"), ("pictures alone", MLPExit(64, 8))):
        model = ExitModel(backbone, {"stage1": head}, example, seed=seed)
        train_exits(model, data, epochs=options.tone_epochs, seed=seed)
        first, final = collect_outputs(model, data.test).means()
        numbers = {"macs": model.costs.heads[0], "stage1 %": 100 * first, "final %": 100 * final}
        yield Row("synthetic tones", what, seed, numbers)


def print_tables(rows: Sequence[Row]) -> None:
    """Print each table: means over seeds, of percentages the range besides."""
    for table in dict.fromkeys(row.table for row in rows):
        own = [row for row in rows if row.table == table]
        names = list(own[0].numbers)
        print(f"\n{table}\n\n| | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        for what in dict.fromkeys(row.what for row in own):
            same = [row.numbers for row in own if row.what == what]
            cells = [_cell(name, [numbers[name] for numbers in same]) for name in names]
            print(f"| {what} | {' | '.join(cells)} |")


def _cell(name: str, values: list[float]) -> str:
    if "%" in name:
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        return f"{mean(values):.1f}{spread}"
    return f"{mean(values):,.0f}" if abs(mean(values)) >= 1000 else f"{mean(values):.3g}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against multiply-adds and against latency."""
    figure, (left, right) = new_figures("Early exits", 2, 4.8, 11.0)
    macs, seconds = (
        [row for row in rows if row.table == f"accuracy against {what}"] for what in ("multiply-adds", "latency")
    )
    local = "cut output, 4 Mbit/s"  # which no rate changes
    shown = [row for row in seconds if "at most" in row.what and row.what.startswith(("cut block1", local))]
    seconds = [replace(row, what=row.what.replace(local, "cut output, any rate")) for row in shown]
    for axis, own, number, split in ((left, macs, "Mmacs", ", beta"), (right, seconds, "ms", ", at most")):
        lines: dict[str, dict[str, list[dict[str, float]]]] = {}
        for row in own:
            lines.setdefault(row.what.split(split)[0], {}).setdefault(row.what, []).append(row.numbers)
        for style, (line, points) in zip(STYLES, lines.items(), strict=False):
            across = [mean(one[number] for one in same) for same in points.values()]
            up = [mean(one["%"] for one in same) for same in points.values()]
            look: dict[str, Any] = {
                "color": style.color,
                "linestyle": style.linestyle,
                "marker": style.marker,
                "markersize": style.markersize,
            }
            axis.plot(across, up, label=line, **look)
        axis.set(xlabel={"Mmacs": "million multiply-adds an image", "ms": "ms an image"}[number], ylabel="accuracy, %")
        if lines:
            axis.legend(fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=15, help="of the backbone, and of joint and layer-wise training")
    parser.add_argument("--head-epochs", type=int, default=8, help="of heads on the frozen backbone, and of predictors")
    parser.add_argument("--tone-epochs", type=int, default=6)
    parser.add_argument("--head-macs", type=float, default=3e5, help="of each head that is compared")
    parser.add_argument("--heavy-macs", type=float, default=3e6, help="of the heavy head")
    parser.add_argument(
        "--device-mmacs", type=float, default=200.0, help="million multiply-adds a second of the device"
    )
    parser.add_argument("--edge-mmacs", type=float, default=20_000.0)
    parser.add_argument("--link-ms", type=float, default=5.0, help="of the link besides bytes over bandwidth")
    parser.add_argument("--mbits", type=float, nargs=3, default=[0.25, 1.0, 4.0])
    parser.add_argument(
        "--max-ms", type=float, nargs="+", default=[32.0, 40.0, 50.0, 80.0], help="mean latency that is allowed"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON file and the figure")
    options = parser.parse_args()
    rows: list[Row] = []
    for seed in options.seeds:
        started = time.perf_counter()
        parts = parts_of(options, seed)
        print(f"seed {seed}: backbone, {time.perf_counter() - started:.0f} s", flush=True)
        for section in (equal_macs, more_data, along_macs, break_even, along_bandwidth):
            started = time.perf_counter()
            rows += section(parts, options)
            print(f"seed {seed}: {section.__name__}, {time.perf_counter() - started:.0f} s", flush=True)
        rows += fusion(seed, options)
    print_tables(rows)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        write_json(options.out / "early_exits.json", {"options": given, "rows": [asdict(row) for row in rows]})
        draw(rows, options.out / "early_exits.png")


if __name__ == "__main__":
    main()
