"""Reads the command line of fsl-profile: its own options, and overrides of fsl-simulate for the rest."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fsl.simulations.profiling.int8_model import read_int8

from fsl.errors import ConfigError

T = TypeVar("T")

OWN = (
    "run", "front", "points", "batch", "repetitions", "warm_up", "threads", "checks", "profile", "edge_profile",
    "device_at", "edge_at", "ca", "token", "insecure", "wait",
    "device_speed", "edge_speed", "rates", "images", "int8", "out",
)  # fmt: skip
RATES = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0)
_OF_PROFILES = ("device", "link")  # groups that count also where the model is a run's
_OF_MEASURING = ("run", "front", "int8", "batch", "repetitions", "warm_up", "threads", "checks")


@dataclass(frozen=True)
class ProfileOptions:
    """What fsl-profile is asked for; None where nothing was said. Rates are in Mbit/s."""

    overrides: tuple[str, ...]
    run: Path | None
    front: int | None
    int8: bool | int
    points: tuple[str, ...] | None
    batch: int | None
    repetitions: int
    warm_up: int
    threads: int
    checks: int
    profile: Path | None
    edge_profile: Path | None
    device_at: str | None
    edge_at: str | None
    ca: Path | None
    token: Path | None
    insecure: bool
    wait: float
    device_speed: float
    edge_speed: float
    rates: tuple[float, ...]
    images: tuple[str, ...] | None
    out: Path | None

    @property
    def names_device(self) -> bool:
        """Whether the user says which device this is, so that its power is known."""
        return any(_key(override) in ("device", "device.power_active_watts") for override in self.overrides)

    @property
    def measures(self) -> bool:
        """Whether a model is measured here."""
        return not all(given is not None for given in self.others.values())

    @property
    def others(self) -> dict[str, Path | str | None]:
        """Where each side's profile comes from, if not from this machine: a file, or who is asked for it."""
        return {"device": self.profile or self.device_at, "edge": self.edge_profile or self.edge_at}


def read_options(arguments: Sequence[str]) -> ProfileOptions:
    """Read a command line; ConfigError for an option that cannot be used."""
    if wrong := [argument for argument in arguments if "=" not in argument]:
        raise ConfigError(f"{wrong[0]}: give options as key=value; see fsl-profile --help")
    own = {_key(argument): argument.partition("=")[2] for argument in arguments if _key(argument) in OWN}
    overrides = tuple(argument for argument in arguments if _key(argument) not in OWN)
    options = ProfileOptions(
        overrides=overrides,
        run=_path(own, "run"),
        int8=read_int8(own.get("int8")),
        front=None if "front" not in own else _number(own, "front", int, 0, 0),
        points=_listed(own, "points") or None,
        batch=None if "batch" not in own else _number(own, "batch", int, 1, 1),
        repetitions=_number(own, "repetitions", int, 50, 1),
        warm_up=_number(own, "warm_up", int, 5, 0),
        threads=_number(own, "threads", int, 1, 1),
        checks=_number(own, "checks", int, 3, 0),
        profile=_path(own, "profile"),
        edge_profile=_path(own, "edge_profile"),
        device_at=own.get("device_at"),
        edge_at=own.get("edge_at"),
        ca=_path(own, "ca"),
        token=_path(own, "token"),
        insecure=_flag(own, "insecure"),
        wait=_number(own, "wait", float, 600.0, 0.001),
        device_speed=_number(own, "device_speed", float, 1.0, 1e-6),
        edge_speed=_number(own, "edge_speed", float, 1.0, 1e-6),
        rates=_rates(own),
        images=_listed(own, "images") if "images" in own else None,
        out=_path(own, "out"),
    )
    _refuse_together(options, own)
    return options


def _refuse_together(options: ProfileOptions, own: Mapping[str, str]) -> None:
    others = [text for text in options.overrides if _key(text).partition(".")[0] not in _OF_PROFILES]
    if options.profile is not None and options.edge_profile is not None:
        idle = [f"{name}={own[name]}" for name in _OF_MEASURING if name in own]
        if idle := [*idle, *others]:
            raise ConfigError(f"{idle[0]}: with profile= and edge_profile= nothing is measured here; leave this out")
    if not options.measures and (mine := next((name for name in ("threads",) if name in own), None)):
        raise ConfigError(f"{mine}={own[mine]}: nothing is measured here; give it to fsl-serve profile")
    if options.run is not None and others:
        raise ConfigError(f"{others[0]}: run={own['run']} has a model and data of its own; leave this out")
    if coded := next((text for text in options.overrides if _key(text).partition(".")[0] == "codec"), None):
        raise ConfigError(f"{coded}: what crosses is measured without a codec; leave it out, and compare by fsl-codecs")
    if options.front is not None and options.run is None:
        raise ConfigError(f"front={own['front']}: whose front is a question for a run; give run=FOLDER too")
    if options.int8 and options.run is None:
        raise ConfigError(f"int8={own['int8']}: ranges come of training; give run=FOLDER too")
    if options.device_speed != 1 and options.names_device:
        raise ConfigError(
            f"device_speed={own['device_speed']}: device=... says which device this machine is, and of one that is so "
            "many times as fast nobody knows the power; leave one out"
        )
    given = next((name for name in ("profile", "edge_profile") if name in own), None)
    _refuse_asking(own)
    if options.points is not None and given is not None:
        raise ConfigError(f"points={own['points']}: they are those of {given}={own[given]}; leave points out")
    given = given or next((name for name in ("device_at", "edge_at") if name in own), None)
    for name in ("device_speed", "edge_speed"):
        if name in own and given is not None:
            raise ConfigError(f"{name}={own[name]}: {given}={own[given]} tells another machine's; leave one out")


def _refuse_asking(own: Mapping[str, str]) -> None:
    """ConfigError where who is asked for a profile, and how, do not go together."""
    for side, file in (("device_at", "profile"), ("edge_at", "edge_profile")):
        if side in own and file in own:
            raise ConfigError(f"{side}={own[side]}, {file}={own[file]}: both tell one side's profile; leave one out")
        if side in own and not (_ADDRESS.fullmatch(own[side]) and 0 < int(own[side].rpartition(":")[2]) < 1 << 16):
            raise ConfigError(f"{side}={own[side]}: give host:port, where fsl-serve profile listens")
    asks = "device_at" in own or "edge_at" in own
    for name in ("ca", "token", "insecure", "wait"):
        if name in own and not asks:
            raise ConfigError(f"{name}={own[name]}: nobody is asked for a profile; give device_at= or edge_at=, too")
    if "ca" in own and _flag(own, "insecure"):
        raise ConfigError("insecure=true with ca: nothing would be encrypted; leave out one of them")


_ADDRESS = re.compile(r"[^\s:]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")


def _flag(own: Mapping[str, str], name: str) -> bool:
    if (text := own.get(name, "false")) not in ("true", "false"):
        raise ConfigError(f"{name}={text}: it must be true or false")
    return text == "true"


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _path(own: Mapping[str, str], name: str) -> Path | None:
    if name not in own:
        return None
    if not own[name]:
        raise ConfigError(f"{name}=: give a path")
    return Path(own[name])


def _listed(own: Mapping[str, str], name: str) -> tuple[str, ...]:
    """Returns texts with commas between them, which may be in brackets as Hydra writes lists."""
    text = own.get(name, "").strip().removeprefix("[").removesuffix("]")
    texts = tuple(part.strip().strip("'\"") for part in text.split(",")) if text else ()
    if not all(texts):
        raise ConfigError(f"{name}={own[name]}: give one or several, with commas between them")
    return texts


def _rates(own: Mapping[str, str]) -> tuple[float, ...]:
    if "rates" not in own:
        return RATES
    found = []
    for text in _listed(own, "rates"):
        rate = _as(float, text)
        if rate is None or not rate >= 0:
            raise ConfigError(
                f"rates={own['rates']}: {text!r} is no rate in Mbit/s of at least 0, as in rates=1,10,100"
            )
        found.append(rate)
    if not found:
        raise ConfigError("rates=: give at least one, as in rates=1,10,100")
    return tuple(sorted(set(found)))


def _number(own: Mapping[str, str], name: str, kind: Callable[[str], T], usual: T, least: float) -> T:
    if name not in own:
        return usual
    value = _as(kind, own[name])
    if value is None or not least <= value < math.inf:  # type: ignore[operator]
        what = "whole number" if kind is int else "number"
        raise ConfigError(f"{name}={own[name]}: it must be a {what} of at least {least:g}")
    return value


def _as(kind: Callable[[str], T], text: str) -> T | None:
    try:
        return kind(text)
    except ValueError:
        return None
