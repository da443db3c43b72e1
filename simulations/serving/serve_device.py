"""`fsl-serve device`: asks edges for rows of a run's data, and says how that went."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from fsl.simulations.endings import tell
from fsl.simulations.fsl_export import TrainedRun
from fsl.simulations.serving.common_of_answers import common_of_answers
from fsl.simulations.serving.serve_options import ServeOptions
from fsl.simulations.serving.serve_tokens import read_token
from fsl.simulations.serving.served_exits import served_exits
from fsl.simulations.serving.served_run import MODEL_OPTIONS, served_run

from fsl.data import Examples
from fsl.deployment.extra_installed import needs_prometheus
from fsl.errors import ConfigError, one_of
from fsl.files import write_json
from fsl.inference import SplitPoints
from fsl.inference.comparison import tensor_bytes
from fsl.inference.planning import StaticSplit
from fsl.inference.serving import Answer, DeviceExits, InferenceDevice, UnansweredError
from fsl.inference.serving.device_counts import DeviceCounts
from fsl.inference.split_points import INPUT
from fsl.round.evaluation import Tally
from fsl.run.observers import human_bytes
from fsl.segments.tensor_trees import as_values

DEVICE_OPTIONS = (
    *MODEL_OPTIONS,
    *("edge", "data", "point", "codec", "exits", "threshold", "rows", "count", "rate"),
    *("deadline", "fallback", "connect", "lean", "summary"),
    *("ca", "cert", "cert-key", "token", "insecure", "threads", "metrics"),
)
_SETS = ("test", "validation", "train")


@dataclass(frozen=True)
class AskedRows:
    """A question's future, and which rows it has."""

    future: "Future[Answer]"
    targets: torch.Tensor


def serve_device(arguments: Sequence[str]) -> int:
    """Ask, and print what came; returns the exit code: 1 where a question has no answer."""
    options = ServeOptions(arguments, DEVICE_OPTIONS)
    certificates = options.certificates({"ca": "ca", "certificate": "cert", "key": "cert-key"})
    torch.set_num_threads(options.whole("threads", 1, 1) or 1)
    fallback = not options.has("fallback") or options.flag("fallback")
    rows, rate = options.whole("rows", 1, 1) or 1, options.number("rate", None)
    deadline = options.number("deadline", None, zero=True)
    codec = options.text("codec", "identity")
    edges = options.texts("edge")
    if not edges:
        raise ConfigError("edge must be given: host:port, or several with commas between them")
    with ExitStack() as stack:
        counts = _counts(options, stack)
        run, points = served_run(options)
        examples = _examples(run, options.text("data", "test"))
        exits = served_exits(options, points)
        point = options.text("point", _usual(points, exits))
        points.check(point)
        device = stack.enter_context(
            InferenceDevice(
                points,
                edges,
                policy=StaticSplit(point, codec),
                codecs=[codec],
                exits=exits,
                token=read_token(options.path("token")) if options.has("token") else b"",
                certificates=certificates,
                fallback=fallback,
                lean=not options.has("lean") or options.flag("lean"),
                connect_seconds=options.number("connect", 5.0, zero=True) or 0.0,
                counts=counts,
            )
        )
        for edge in device.edges:
            tell(f"edge {edge.address}: {'open' if edge.is_open else edge.reason}")
        count = options.whole("count", max(1, len(examples) // rows), 1) or 1
        began = time.monotonic()
        asked = _ask(device, examples, rows, count, rate, deadline)
        return _report(run, device, asked, began, options, tensor_bytes(points.model))


def _usual(points: SplitPoints, exits: DeviceExits | None) -> str:
    if exits is not None:
        return exits.model.exits[-1]
    return points.cuts[0] if points.cuts else INPUT


def _examples(run: TrainedRun, which: str) -> Examples:
    one_of("data", which, _SETS)
    found = {"test": run.data.test, "validation": run.data.validation, "train": run.data.train}[which]
    if found is None:
        there = [name for name in _SETS if getattr(run.data, name) is not None]
        raise ConfigError(f"data={which}: this run's data set has none; there are {', '.join(there)}")
    return found.of_one_length()


def _ask(
    device: InferenceDevice, examples: Examples, rows: int, count: int, rate: float | None, deadline: float | None
) -> list[AskedRows]:
    """Ask `count` questions: `rate` a second, or each when the one before is answered."""
    asked, began = list[AskedRows](), time.monotonic()
    for number in range(count):
        inputs, targets = examples.batch(torch.arange(number * rows, (number + 1) * rows) % len(examples))
        if rate is not None:
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
        future = device.submit(as_values(inputs), deadline=deadline)
        asked.append(AskedRows(future, targets))
        if rate is None:
            future.exception()
    return asked


def _report(
    run: TrainedRun,
    device: InferenceDevice,
    asked: Sequence[AskedRows],
    began: float,
    options: ServeOptions,
    weights: Mapping[int, int],
) -> int:
    tally, seconds, unanswered = Tally(run.objective), list[float](), list[str]()
    for one in asked:
        error = one.future.exception()
        if isinstance(error, UnansweredError):
            unanswered.append(str(error))
            continue
        answer = one.future.result()
        seconds.append(answer.seconds.total)
        tally.add(answer.outputs, one.targets)
    took, figures = time.monotonic() - began, device.figures
    where = ", ".join(f"{count} at the {where}" for where, count in sorted(figures.answers.items(), reverse=True))
    tell(f"answers: {where or 'none'}; {len(seconds) / took:.1f} a second")
    if seconds:
        score, times = tally.score(), torch.tensor(seconds, dtype=torch.float64)
        told = "" if score.accuracy is None else f", accuracy {score.accuracy:.4f}"
        tell(f"loss {score.loss:.4f}{told}")
        cuts = torch.quantile(times, torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)).tolist()
        tell("latency: " + ", ".join(f"p{q} {1000 * cut:.2f} ms" for q, cut in zip((50, 90, 99), cuts)))
    if figures.answers.get("edge"):
        each = figures.up_bytes / figures.answers["edge"], figures.down_bytes / figures.answers["edge"]
        tell(f"bytes a question: {human_bytes(each[0])} up, {human_bytes(each[1])} down")
    if figures.exits:
        tell("exits: " + ", ".join(f"{count} rows {name}" for name, count in figures.exits.items()))
    fell = ", ".join(f"{count} {reason}" for reason, count in sorted(figures.fallbacks.items()))
    tell(f"fallbacks: {fell or 'none'}")
    if options.has("summary"):
        common = common_of_answers(
            tally.score(),
            seconds,
            figures,
            rows=len(asked[0].targets),
            took=took,
            memory_bytes=float(sum(weights.values())),
        )
        write_json(options.path("summary"), {"common": common.to_json()})
    if unanswered:
        tell(f"without an answer: {len(unanswered)}; the last: {unanswered[-1]}")
    return 1 if unanswered else 0


def _counts(options: ServeOptions, stack: ExitStack) -> DeviceCounts:
    if not options.has("metrics"):
        return DeviceCounts()
    address = options.text("metrics")
    with needs_prometheus(f"metrics={address}"):
        from prometheus_client import CollectorRegistry

        from fsl.deployment.metrics_endpoint import MetricsEndpoint
        from fsl.inference.serving.serving_metrics import PrometheusDeviceCounts
    registry = CollectorRegistry()
    counts = PrometheusDeviceCounts(registry)
    endpoint = MetricsEndpoint("metrics", address, registry, "serving-device")
    stack.callback(endpoint.close)
    tell(f"metrics at http://{endpoint.address}/metrics")
    return counts
