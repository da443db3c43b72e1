"""Sets the predicted latency of each split point beside the measured one, over links of several rates.

    python -m benchmarks.predicted_latency                  # LeNet, batches of 8; about a minute
    python -m benchmarks.predicted_latency --mbits 2 50 --questions 50

An edge serves in a process of its own. A device, in this one, asks it over a `ShapedLink`, one question at a time; its
layers take as long as at `--speed` million multiply-adds a second. The prediction has the profiles of both, measured
before, the link's true rate, and the shortest empty round trip that the device measured over that link. What it does
not have: encoding and checking, records' headers, and threads that wait for each other's turn.
"""

import argparse
import copy
import json
import socket
from collections.abc import Sequence
from statistics import median

import torch
from fsl.simulations.serving.slow_device import slow_down

from benchmarks.processes import Row, processes, round_, show
from fsl.inference import SplitPoints
from fsl.inference.links import ShapedLink
from fsl.inference.planning import LinkState, RateTrace, SplitChoice, SplitCosts, predicted
from fsl.inference.profiles import measure
from fsl.inference.serving import InferenceDevice, InferenceEdge
from fsl.inference.serving.thread_turns import short_turns
from fsl.models import LeNet

SHAPE = (1, 28, 28)
POINTS = ["pool1", "pool2", "fc1", "fc2"]
MBITS = (1.0, 5.0, 20.0, 100.0)
_PATIENCE = 60.0  # seconds for an answer


def model() -> LeNet:
    torch.manual_seed(0)
    return LeNet(SHAPE, 10).eval()


class Edge:
    """Serves in a process of its own."""

    def __init__(self, rows: int) -> None:
        torch.set_num_threads(1)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._lean = f"127.0.0.1:{free.getsockname()[1]}"
        self._turns = short_turns()
        self._turns.__enter__()
        self._edge = InferenceEdge(SplitPoints(model(), torch.randn(3, *SHAPE), POINTS), lean=self._lean)
        self._rows = rows

    def addresses(self) -> list[str]:
        return [self._edge.address, self._lean]

    def close(self) -> None:
        self._edge.close()


def compare(device: InferenceDevice, costs: SplitCosts, mbit: float, batch: torch.Tensor, questions: int) -> list[Row]:
    """A row for each point."""
    rows = []
    for point in costs.names:
        device.infer(batch, point=point)  # the first one finds caches cold
        found = [device.infer(batch, point=point, deadline=_PATIENCE) for _ in range(questions)]
        assert all(answer.reason == "" for answer in found)
        took = sorted(answer.seconds.total for answer in found)
        state = LinkState(mbit, mbit, rtt_seconds=device.link_state().rtt_seconds)
        expected = predicted(costs, SplitChoice(point), state).seconds
        rows.append(
            show(
                {
                    "mbit": mbit,
                    "point": point,
                    "predicted_ms": round_(1e3 * expected),
                    "p50_ms": round_(1e3 * median(took)),
                    "p90_ms": round_(1e3 * took[int(0.9 * (len(took) - 1))]),
                    "p50_over_predicted": round(median(took) / expected, 3),
                }
            )
        )
    return rows


def run(mbits: Sequence[float], rows: int, questions: int, speed: float, delay: float) -> list[Row]:
    torch.set_num_threads(1)
    batch = torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain = model()
    slow = copy.deepcopy(plain)
    slow_down(slow, speed)
    points = SplitPoints(slow, batch, POINTS)
    costs = SplitCosts(
        device=measure(points, batch, repetitions=15, checks=0),
        edge=measure(SplitPoints(plain, batch, POINTS), batch, checks=0),
    )
    found = []
    with processes((Edge, rows)) as (edge,), short_turns():
        edge.ask("addresses")
        addresses = edge.answer()
        for mbit in mbits:
            with (
                ShapedLink(addresses, RateTrace.constant(mbit), delay=delay) as link,
                InferenceDevice(points, [link.address], fallback=False, patience=_PATIENCE) as device,
            ):
                assert device.wait_open(_PATIENCE)
                found += compare(device, costs, mbit, batch, questions)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbits", type=float, nargs="+", default=MBITS)
    parser.add_argument("--rows", type=int, default=8, help="rows of a question")
    parser.add_argument("--questions", type=int, default=15, help="at each point and rate")
    parser.add_argument("--speed", type=float, default=140.0, help="million multiply-adds a second of the device")
    parser.add_argument("--delay", type=float, default=0.005, help="seconds each way")
    given = parser.parse_args()
    found = run(given.mbits, given.rows, given.questions, 1e6 * given.speed, given.delay)
    ratios = [float(row["p50_over_predicted"]) for row in found]
    print(json.dumps({"median_ratio": round(median(ratios), 3), "least": min(ratios), "most": max(ratios)}))


if __name__ == "__main__":
    main()
