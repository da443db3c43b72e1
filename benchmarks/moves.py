"""Measures a migration's cost: a round of VGG5 whose device moves between two edges, over one whose device stays.

    python -m benchmarks.moves

Two edges and a device are processes of their own, on loopback; staying, migrating and beginning again run in turn.
One torch thread per process.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.processes import processes, show, write_rows
from benchmarks.wire import INSECURE, RUN, NodeProcess, Task, write_key
from fsl.data import IID
from fsl.messages.node_part import EdgePart, EdgePeer, NodePart, Ticket, Visitor
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.mobility import Move
from fsl.models import VGG5
from fsl.objective import CrossEntropy
from fsl.round.workload import Workload
from fsl.wire.tokens import Claims, Signer, fingerprint

CUTS = ("pool1", "pool2", "conv3")
KINDS = ("stay", "migrate", "restart")
TARGET = 0.2  # seconds that a migration may add to a round


@dataclass(frozen=True)
class MovingTask(Task):
    """One device, which moves in the middle of every round whose number says so."""

    cut: str = "pool2"

    def workload(self, folder: Path) -> Workload:
        data = self._random()
        torch.manual_seed(0)
        model = VGG5(data.input_shape, 10)
        partition = IID().divide(data.train.targets.numpy(), self.devices, 0)
        return Workload(model, self.cut, data, partition, CrossEntropy(), folder)

    def plan(self, round: int) -> RoundPlan:
        kind = KINDS[round % 3]
        plan = super().plan(round)
        if kind == "stay":
            return plan
        return replace(plan, moves=(Move(0, 0.5, 1),), on_move=kind)  # type: ignore[arg-type]


class Roads:
    """Runs two edges and a device, each in a process."""

    def __init__(self, task: MovingTask, stack: ExitStack):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsl-bench-")))
        key = write_key(folder)
        nodes: list[Mapping[str, object]] = [
            {"role": "edge", "edge": edge, "listen": "127.0.0.1:0", "state": str(folder / f"edge-{edge}")}
            for edge in (0, 1)
        ]
        nodes.append({"role": "device", "devices": "0", "key": str(key), "state": str(folder / "device")})
        builds = [(NodeProcess, task, {**node, **INSECURE}, Path(str(node["state"])) / "store") for node in nodes]
        self.nodes = stack.enter_context(processes(*builds))
        self.task = task
        self.signer = Signer()
        for node in self.nodes:
            node.ask("describe")
        self.about = [node.answer() for node in self.nodes]

    def train(self, round: int) -> float:
        """Returns the seconds of a round, from the first message to the last answer."""
        edge = [(e, self.about[e]["address"]) for e in (0, 1)]
        moves = KINDS[round % 3] != "stay"
        public, task = self.signer.public_key.hex(), DeviceTask(device=0)
        peers = [EdgePeer(edge=e, address=address, key=self.about[e]["edge_key"]) for e, address in edge]
        home = EdgePart(
            cohort=CohortTask(edge=0, devices=(task,)),
            cloud_key=public,
            fence=round,
            peers=(peers[1],) if moves else (),
        )
        samples = self.about[2]["samples"]["0"]
        steps = -(-samples // self.task.batch_size)
        mark = fingerprint(bytes.fromhex(self.about[2]["key"]))
        token = self.signer.sign(Claims(RUN, round, 0, (0, 1), steps, samples, round, mark)).hex()
        ticket = Ticket(task=task, edge=0, address=edge[0][1], token=token, others=tuple(edge) if moves else ())
        parts = [NodePart(edges=(home,)), NodePart(tickets=(ticket,))]
        asked = [self.nodes[0], self.nodes[2]]
        if moves:
            other = EdgePart(
                cohort=CohortTask(edge=1, devices=()),
                cloud_key=public,
                fence=round,
                peers=(peers[0],),
                visitors=(Visitor(task=task, home=0),),
            )
            asked.append(self.nodes[1])
            parts.append(NodePart(edges=(other,)))
        started = time.perf_counter()
        for node, part in zip(asked, parts, strict=True):
            node.ask("train", round, part)
        for node in asked:
            node.answer()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="alternated rounds of each kind; the median counts")
    parser.add_argument("--out", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    missed, rows = [], []
    for cut in CUTS:
        with ExitStack() as stack:
            roads = Roads(MovingTask(cut, "VGG5", 1, 32, "Replicated", 20, cut), stack)
            seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(3, 3 * (arguments.pairs + 2)):
                taken = roads.train(number)
                if number >= 6:  # the first of each warms up
                    seconds[KINDS[number % 3]].append(taken)
        over = [a - b for a, b in zip(seconds["migrate"], seconds["stay"], strict=True)]
        saved = [1 - a / b for a, b in zip(seconds["migrate"], seconds["restart"], strict=True)]
        row = {"what": f"VGG5 cut at {cut}, 20 steps of 32, a move at half", "overhead s": round(median(over), 3)}
        row |= {"range": [round(min(over), 3), round(max(over), 3)], "target": TARGET}
        row |= {f"{kind} s": round(median(values), 3) for kind, values in seconds.items()}
        rows.append(show(row | {"saved over restart": round(median(saved), 3)}))
        if median(over) > TARGET:
            missed.append(cut)
    if arguments.out:
        write_rows(arguments.out, rows)
    sys.exit(f"above target: {missed}" if missed else 0)


if __name__ == "__main__":
    main()
