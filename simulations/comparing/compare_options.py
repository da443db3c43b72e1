"""Reads the command line of fsl-compare-inference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsl.simulations.profiling.int8_model import read_int8
from fsl.simulations.serving.serve_options import ServeOptions
from fsl.simulations.sweeps.search_trial import composed

from fsl.costs import DeviceProfile, LinkProfile
from fsl.errors import ConfigError
from fsl.importing.building import build_kind
from fsl.inference.planning import DevicePower, RateTrace
from fsl.inference.planning.rate_trace import SHIPPED
from fsl.run.config import read_config

_GROUPS = ("device", "link")
OWN = (
    "run", "front", "int8", "points", "codecs", "bottlenecks", "exits", "threshold", "images", "edge_speed",
    "device_speed", "repetitions", "threads", "rates", "loads", "per_second", "requests", "servers", "deadline", "rows",
    "seed", "out",
)  # fmt: skip


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, over which links and loads, and by how many requests; None where nothing was said."""

    run: Path
    front: int | None
    int8: bool | int
    points: tuple[str, ...] | None
    codecs: tuple[str, ...]
    bottlenecks: tuple[Path, ...]
    exits: Path | None
    threshold: float | None
    images: tuple[str, ...] | None
    edge_speed: float
    device_speed: float
    repetitions: int
    threads: int
    links: dict[str, RateTrace]
    loads: tuple[float, ...]
    per_second: float
    requests: int
    servers: int
    deadline: float
    rows: int
    seed: int
    out: Path | None
    power: DevicePower | None
    rtt_seconds: float


def read_options(arguments: Sequence[str]) -> CompareOptions:
    """Read a command line; ConfigError for an option that cannot be used."""
    ours = [argument for argument in arguments if argument.partition("=")[0].partition(".")[0] not in _GROUPS]
    profiles = [argument for argument in arguments if argument not in ours]
    given = ServeOptions(ours, OWN)
    if not given.has("run"):
        raise ConfigError("run must be given: the folder of a finished run of fsl-simulate; see --help")
    if given.has("threshold") and not given.has("exits"):
        raise ConfigError("threshold: rows leave by exits; name the folder that has them, as in exits=FOLDER")
    top = read_config(composed(profiles))
    link = build_kind("link", top.link, LinkProfile)
    named = any(argument.startswith("device") for argument in profiles)
    power = DevicePower.of(build_kind("device", top.device, DeviceProfile), link) if named else None
    if named and power is None:
        raise ConfigError(
            "device, link: energy needs the power of both, and one has none; give it, or leave device out"
        )
    out = given.path("out") if given.has("out") else None
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"out={out}: it is a file; give a folder")
    return CompareOptions(
        run=given.path("run"),
        front=given.whole("front", None),
        int8=read_int8(given.text("int8", "false")),
        points=tuple(given.texts("points")) or None,
        codecs=tuple(given.texts("codecs")),
        bottlenecks=tuple(Path(text) for text in given.texts("bottlenecks")),
        exits=given.path("exits") if given.has("exits") else None,
        threshold=given.number("threshold", None, zero=True),
        images=_images(given),
        edge_speed=_number(given, "edge_speed", 1.0),
        device_speed=_number(given, "device_speed", 1.0),
        repetitions=_whole(given, "repetitions", 30),
        threads=_whole(given, "threads", 1),
        links={name: _trace(name) for name in given.texts("rates") or ("1", "10", "100")},
        loads=tuple(dict.fromkeys(_load(text) for text in given.texts("loads") or ("0",))),
        per_second=_number(given, "per_second", 1.0),
        requests=_whole(given, "requests", 300),
        servers=_whole(given, "servers", 1),
        deadline=_number(given, "deadline", 0.5),
        rows=_whole(given, "rows", 1000),
        seed=given.whole("seed", 0) or 0,
        out=out,
        power=power,
        rtt_seconds=2 * link.latency_s,
    )


def _images(given: ServeOptions) -> tuple[str, ...] | None:
    if not given.has("images"):
        return None
    texts = tuple(given.texts("images"))
    return () if texts == ("none",) else texts


def _trace(text: str) -> RateTrace:
    """Returns the trace of a name, or a rate in Mbit/s that holds."""
    if text in SHIPPED:
        return RateTrace.shipped(text)
    if text.endswith(".csv"):
        return RateTrace.read(text)
    try:
        return RateTrace.constant(float(text))
    except ValueError:
        raise ConfigError(
            f"rates: {text!r} is no rate in Mbit/s, no file.csv and none of {', '.join(SHIPPED)}"
        ) from None


def _load(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1:
        raise ConfigError(f"loads: {text!r} is no share from 0 to less than 1 of the edge's speed")
    return found


def _number(given: ServeOptions, name: str, usual: float) -> float:
    return given.number(name, usual) or usual


def _whole(given: ServeOptions, name: str, usual: int) -> int:
    return given.whole(name, usual, 1) or usual
