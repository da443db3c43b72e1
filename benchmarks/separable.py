"""Separable ResNet-8 over 4 devices on CIFAR-10: bytes between devices against accuracy, by which links there are.

    python -m benchmarks.separable CIFAR10_FOLDER --epochs 8 --search 3 --retrain 4 --seeds 0 1 2 3 4 --out X

CIFAR10_FOLDER holds train.parquet and test.parquet as the Hub's uoft-cs/cifar10 has them. A dense network is trained
for each seed. A search from its weights takes `--search` epochs and gives links; its weights go. Then all networks are
trained alike, from the dense weights, `--retrain` epochs with fixed gates: searched links, random links of equal bytes,
all links and none. At the smallest budget there are also as many links in each block as were found, between random
devices: what is left then of the search is its choice of blocks. X gets separable.json and separable.png; `--draw X`
draws anew from X/separable.json. The last lines are of the searched network of the last seed as 4 processes of this
machine.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from fsl import seeds
from fsl.data import TaskData, cifar10
from fsl.files import write_json
from fsl.inference.separable import (
    Gates,
    LocalGroup,
    SeparableModel,
    save_devices,
    search_gates,
    separable,
    separable_accuracy,
    separable_latency,
    train_separable,
)
from fsl.models import ResNet8
from fsl.run.plotting import STYLES, Style, new_figures, save_figure

DEVICES = 4
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t of so many seeds


@dataclass(frozen=True)
class Row:
    """One network of one seed: bytes are of one image, and seconds predicted for four pi4 over wifi_75."""

    network: str
    budget: float
    seed: int
    links: int
    per_block: list[int]
    map_bytes: int
    all_bytes: int
    accuracy: float
    latency_ms: float


def row(network: str, budget: float, seed: int, model: SeparableModel, data: TaskData) -> Row:
    """Measure a network on the test images."""
    size = model.bytes_of()
    found = Row(
        network=network,
        budget=budget,
        seed=seed,
        links=model.gates.count,
        per_block=(model.gates.tensor().sum((1, 2)) - DEVICES).tolist(),
        map_bytes=size.maps,
        all_bytes=size.total,
        accuracy=separable_accuracy(model, data.test),
        latency_ms=1e3 * separable_latency(model, devices="pi4", link="wifi_75").seconds,
    )
    print(
        f"seed {seed}: {network}, {budget:g}: {found.accuracy:.4f}, {found.map_bytes} B {found.per_block}", flush=True
    )
    return found


def same_blocks(gates: Gates, seed: int) -> Gates:
    """Returns as many links in each block as these, between devices drawn at random."""
    drawn = torch.rand(gates.tensor().shape, generator=seeds.torch_generator(seed, "separable-same-blocks"))
    drawn[:, range(DEVICES), range(DEVICES)] = -1
    found = torch.zeros(drawn.shape)
    for block, count in enumerate((gates.tensor().sum((1, 2)) - DEVICES).tolist()):
        found[block].view(-1)[drawn[block].flatten().argsort(descending=True)[:count]] = 1
    return Gates.of(found)


def rows_of(options: argparse.Namespace, seed: int, keep: Callable[[SeparableModel], None]) -> Iterator[Row]:
    """Train all networks of a seed; `keep` gets the searched one of the largest budget."""
    data = cifar10(str(options.folder), options.images, options.test_images)
    with seeds.left_as_found(), seeds.DEFAULT_GENERATOR:
        seeds.reseed(seeds.derive(seed, "separable-network"))
        network = ResNet8((3, 32, 32), 10)
    dense = separable(network, devices=DEVICES, input_shape=(3, 32, 32))
    train_separable(
        dense, data, epochs=options.epochs, learning_rate=2e-3, decay_at=round(0.7 * options.epochs), seed=seed
    )
    yield row("dense, before", 1.0, seed, dense, data)

    def fixed(gates: Gates) -> SeparableModel:
        model = copy.deepcopy(dense)
        model.gates = gates
        train_separable(model, data, epochs=options.retrain, decay_at=max(1, options.retrain - 1), seed=seed + 100)
        return model

    yield row("all links", 1.0, seed, fixed(dense.all_links()), data)
    yield row("no links", 0.0, seed, fixed(dense.no_links()), data)
    whole = float(dense.link_bytes().sum())
    for budget in options.budgets:
        model = copy.deepcopy(dense)
        found = search_gates(model, data, map_bytes=int(budget * whole), epochs=options.search, seed=seed)
        model = fixed(found.gates)
        yield row("searched", budget, seed, model, data)
        if budget == max(options.budgets):
            keep(model)
        random = dense.random_links(model.bytes_of().maps, seed)
        yield row("random links", budget, seed, fixed(random), data)
        if budget == min(options.budgets):
            yield row("same blocks, random devices", budget, seed, fixed(same_blocks(model.gates, seed)), data)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and half of its 95 % interval (0 for one seed)."""
    half = T_95.get(len(values), 2.0) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return mean(values), half


def groups_of(rows: Sequence[Row]) -> dict[tuple[str, float], list[Row]]:
    """Returns the rows of each network at each budget, over seeds."""
    found: dict[tuple[str, float], list[Row]] = {}
    for one in rows:
        found.setdefault((one.network, one.budget), []).append(one)
    return found


def print_table(rows: Sequence[Row]) -> None:
    """Print means and 95 % intervals over seeds; of searched links also what they are above random ones, in pairs."""
    print("\n| network | budget | maps, kB | all bytes, kB | accuracy, % | above random, % | predicted ms |")
    print("|---|---|---|---|---|---|---|")
    groups = groups_of(rows)
    for (network, budget), own in sorted(groups.items(), key=lambda one: (one[0][1], one[0][0])):
        percent, half = spread([100 * one.accuracy for one in own])
        others = {one.seed: one.accuracy for one in groups.get(("random links", budget), [])}
        above = ""
        if others and network != "random links":
            gain, gain_half = spread([100 * (one.accuracy - others[one.seed]) for one in own if one.seed in others])
            above = f"{gain:+.1f} ± {gain_half:.1f}"
        print(
            f"| {network} | {100 * budget:g} % | {mean(one.map_bytes for one in own) / 1e3:.0f} "
            f"| {mean(one.all_bytes for one in own) / 1e3:.0f} | {percent:.1f} ± {half:.1f} | {above} "
            f"| {mean(one.latency_ms for one in own):.1f} |"
        )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy against bytes of maps, and how many links each block keeps."""
    figure, (left, right) = new_figures("Separable ResNet-8 on 4 devices, CIFAR-10", 2, 4.4, 11.0)
    groups = groups_of(rows)
    ends = {"no links": 0.0, "all links": 1.0}
    for style, network in zip(STYLES, ("searched", "random links", "same blocks, random devices"), strict=False):
        line = [groups[key] for key in groups if key[0] == network]
        curve = sorted(_point(group)[:2] for group in [*line, *(groups[end] for end in ends.items())])
        if len(line) > 1:
            left.plot(*zip(*curve, strict=True), color=style.color, linestyle=style.linestyle, linewidth=1)
        _mark(left, line, network, style, hollow=len(line) == 1)
    for style, end in zip(STYLES[3:], ends.items(), strict=False):
        _mark(left, [groups[end]], end[0], style)
    left.set(xlabel="maps between devices, kB an image", ylabel="accuracy, %")
    left.legend(fontsize=8)
    budgets = sorted({one.budget for one in rows if one.network == "searched"})
    for place, (budget, style) in enumerate(zip(budgets, STYLES, strict=False)):
        kept = [mean(counts) for counts in zip(*(one.per_block for one in groups["searched", budget]), strict=True)]
        places = [block + 0.4 * place for block in range(len(kept))]
        hatch = ("", "///", "...")[place % 3]
        right.bar(
            places, kept, 0.38, label=f"{100 * budget:g} % of the bytes", color=style.color, hatch=hatch, alpha=0.8
        )
    costs = ("16", "16", "16", "8", "8", "4")
    right.set_xticks([block + 0.2 for block in range(len(costs))], [f"{k + 1}\n{kb} KiB" for k, kb in enumerate(costs)])
    right.set(xlabel="block, and bytes of one of its links", ylabel="links that the search keeps (of 12)", ylim=(0, 12))
    right.legend(fontsize=8)
    save_figure(figure, path)


def _point(group: Sequence[Row]) -> tuple[float, float, float]:
    """Returns bytes of maps in kB, accuracy in percent, and half of its interval."""
    percent, half = spread([100 * one.accuracy for one in group])
    return mean(one.map_bytes for one in group) / 1e3, percent, half


def _mark(axes: Any, line: Sequence[Sequence[Row]], label: str, style: Style, hollow: bool = False) -> None:
    across, means, halves = zip(*(_point(group) for group in line), strict=True)
    size, face = style.markersize + 5 * hollow, "none" if hollow else style.color
    look: dict[str, Any] = {"marker": style.marker, "markersize": size, "markerfacecolor": face, "capsize": 4}
    axes.errorbar(across, means, halves, label=label, color=style.color, linestyle="none", **look)


def show_processes(model: SeparableModel, rows: int = 16, count: int = 20) -> dict[str, float]:
    """Run a network as 4 processes; returns whether they give one program's outputs, bytes, and milliseconds."""
    generator = seeds.torch_generator(0, "separable-processes")
    images = torch.randn(rows, 3, 32, 32, generator=generator)
    wanted, seconds = model.grouped(images), []
    with tempfile.TemporaryDirectory() as folder:
        save_devices(Path(folder) / "devices", model)
        with LocalGroup(Path(folder) / "devices", rows=rows, patience=60.0) as group:
            found = group.answer(images)
            for _ in range(count):
                began = time.perf_counter()
                group.answer(images)
                seconds.append(time.perf_counter() - began)
    return {"same to the bit": float(torch.equal(found, wanted)), "images": rows, "ms": 1e3 * median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=None)
    parser.add_argument("--images", type=int, default=3000, help="training images")
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=8, help="of the dense network")
    parser.add_argument("--search", type=int, default=3, help="epochs of weights and gates together")
    parser.add_argument("--retrain", type=int, default=4, help="epochs with fixed gates")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.25], help="shares of all links' bytes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=None, help="folder of the JSON file and the figure")
    parser.add_argument("--draw", type=Path, default=None, help="a folder with separable.json to draw and print anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.draw is not None:
        rows = [Row(**one) for one in json.loads((options.draw / "separable.json").read_text())["rows"]]
        print_table(rows)
        draw(rows, options.draw / "separable.png")
        return
    if options.folder is None:
        parser.error("give the folder of CIFAR-10's parquet files")
    rows = []
    kept: list[SeparableModel] = []
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    for seed in options.seeds:
        began = time.process_time()
        for one in rows_of(options, seed, kept.append):
            rows.append(one)
            if options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                told = {"options": given, "rows": [asdict(each) for each in rows]}
                write_json(options.out / "separable.json", told)
        print(f"seed {seed}: {time.process_time() - began:.0f} s of CPU", flush=True)
    print_table(rows)
    processes = show_processes(kept[-1])
    print(f"\n4 processes: {processes}")
    if options.out is not None:
        told = {"options": given, "rows": [asdict(each) for each in rows], "processes": processes}
        write_json(options.out / "separable.json", told)
        draw(rows, options.out / "separable.png")


if __name__ == "__main__":
    main()
