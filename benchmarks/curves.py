"""Rounds as a federation grows: devices, edges, and Ray nodes. Each point has its floor beside it, in the same run.

    python -m benchmarks.curves --out curves.json   # some minutes
    python -m benchmarks.curves --only nodes

devices: all of so many train two steps of 8 in a round (SplitFed V1, MLP), over an unsplit federation of as many.
edges: a hundred devices at so many edges (PSL), over the same at one edge.
nodes: a hundred devices of ten steps on so many Ray nodes, over one of them; nodes share this machine's processors.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from statistics import median

import torch
from fsl.strategies import PSL, SplitFedV1, SplitStrategy

import fsl
from benchmarks.engine import Clock
from benchmarks.floors import OPTIMIZER, examples, unsplit_rounds
from benchmarks.processes import Row, told
from fsl.data import TensorExamples
from fsl.models import MLP

SHAPE = (1, 28, 28)
ROWS = 8  # of a step


def seconds_a_round(
    strategy: SplitStrategy, data: TensorExamples, devices: int, edges: int = 1, nodes: int = 0
) -> float:
    """Returns the median seconds of three rounds after a first one; `nodes`: of Ray, 0 for none."""
    clock = Clock()
    torch.manual_seed(0)
    fsl.simulate(
        MLP(SHAPE, 10),
        data,
        strategy=strategy,
        devices=devices,
        edges=edges,
        rounds=4,
        batch_size=ROWS,
        optimizer=OPTIMIZER,
        evaluate_every=0,
        nodes=max(1, nodes),
        backend=fsl.Backend("ray", cpus=min(1.0, (os.cpu_count() or 1) / nodes)) if nodes else fsl.Backend(),
        observers=[clock],
    )
    return median(b - a for a, b in zip(clock.times[1:], clock.times[2:]))


def devices(turns: int, quick: bool) -> Iterator[Row]:
    for count in (10, 100) if quick else (10, 100, 1_000, 4_000):
        data = examples(count * 2 * ROWS, SHAPE)
        torch.manual_seed(0)
        model = MLP(SHAPE, 10)
        floors, ours = [], []
        unsplit_rounds(model, data, count, ROWS, 1)  # warms it up
        for _ in range(turns):
            floors.append(unsplit_rounds(model, data, count, ROWS, 1))
            ours.append(seconds_a_round(SplitFedV1(), data, count))
        yield point("devices", count, ours, floors, "an unsplit federation")


def edges(turns: int, quick: bool) -> Iterator[Row]:
    data = examples(100 * 2 * ROWS, SHAPE)
    measure = partial(seconds_a_round, PSL(), data, 100)
    return against_first("edges", (1, 10) if quick else (1, 3, 10, 30, 100), turns, lambda n: measure(edges=n))


def nodes(turns: int, quick: bool) -> Iterator[Row]:
    data = examples(100 * 10 * ROWS, SHAPE)
    measure = partial(seconds_a_round, SplitFedV1(), data, 100)
    return against_first("nodes", (1, 2) if quick else (1, 2, 4), turns, lambda n: measure(edges=4, nodes=n))


def against_first(curve: str, counts: tuple[int, ...], turns: int, measure: Callable[[int], float]) -> Iterator[Row]:
    found: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(turns):
        for count in counts:
            found[count].append(measure(count))
    first = found[counts[0]]
    yield from (point(curve, count, found[count], first, f"{counts[0]} of them") for count in counts)


def point(curve: str, count: int, ours: list[float], floors: list[float], floor: str) -> Row:
    """Returns a point of a curve: how many times the seconds of its floor a round takes."""
    ratios = [one / floor for one, floor in zip(ours, floors)]
    row: Row = {"what": f"{curve}: {count:,}", "curve": curve, "count": count}
    row |= {"ms a round": round(1000 * median(ours), 1), f"times {floor}": round(median(ratios), 2)}
    return row | {"range": [round(min(ratios), 2), round(max(ratios), 2)], "target": None}


CURVES = {"edges": edges, "nodes": nodes, "devices": devices}  # what takes longest comes last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CURVES)
    parser.add_argument("--pairs", type=int, default=3, help="turns, in each of which every point is measured")
    parser.add_argument("--quick", action="store_true", help="few points, to see that all works")
    parser.add_argument("--out", help="also write the rows to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [measure(given.pairs, given.quick) for name, measure in CURVES.items() if given.only in (None, name)]
    told(chain(*chosen), given.out)


if __name__ == "__main__":
    main()
