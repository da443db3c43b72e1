"""Reads the command line of fsl-exits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsl.simulations.serving.serve_options import ServeOptions

from fsl.errors import ConfigError
from fsl.inference.exits import ExitHead
from fsl.inference.exits.exit_choice import head_of

OPTIONS = (
    "run", "front", "exits", "distillation", "temperature", "epochs", "batch_size", "learning_rate", "eta",
    "confidence", "threshold", "within", "seed", "out", "overwrite",
)  # fmt: skip


@dataclass(frozen=True)
class ExitOptions:
    """Which exits are trained, how, and where they go; `threshold` is None where the command chooses it."""

    run: Path
    front: int | None
    exits: dict[str, ExitHead]
    distillation: float
    temperature: float
    epochs: int
    batch_size: int
    learning_rate: float
    eta: float
    confidence: str
    threshold: float | None
    within: float
    seed: int
    out: Path
    overwrite: bool


def read_exit_options(arguments: Sequence[str]) -> ExitOptions:
    """Read a command line; ConfigError for an option that cannot be used."""
    given = ServeOptions(arguments, OPTIONS)
    for name, example in (("run", "the folder of a finished run"), ("exits", "as exits=pool1:mlp,pool2:conv:16")):
        if not given.has(name):
            raise ConfigError(f"{name} must be given, {example}; see fsl-exits --help")
    share = given.number("distillation", 0.0, zero=True) or 0.0
    if share > 1:
        raise ConfigError(f"distillation={share:g}: a share of the loss, from 0 to 1")
    if given.has("temperature") and not share:
        raise ConfigError("temperature: it is that of distillation; give distillation=0.5, too")
    if given.has("threshold") and given.has("within"):
        raise ConfigError("threshold and within: one is given or found; leave out one of them")
    confidence = given.text("confidence", "max_softmax")
    if confidence not in ("max_softmax", "entropy"):
        raise ConfigError(f"confidence={confidence}: it must be max_softmax or entropy")
    eta = given.number("eta", 0.0, zero=True) or 0.0
    if eta > 1:
        raise ConfigError(f"eta={eta:g}: a probability, from 0 to 1")
    threshold = given.number("threshold", None, zero=True)
    if threshold is not None and threshold > 1:
        raise ConfigError(f"threshold={threshold:g}: a confidence, from 0 to 1")
    run = given.path("run")
    return ExitOptions(
        run=run,
        front=given.whole("front", None),
        exits=_exits(given.texts("exits")),
        distillation=share,
        temperature=given.number("temperature", 1.0) or 1.0,
        epochs=given.whole("epochs", 10, 1) or 10,
        batch_size=given.whole("batch_size", 32, 2) or 32,
        learning_rate=given.number("learning_rate", 1e-3) or 1e-3,
        eta=eta,
        confidence=confidence,
        threshold=threshold,
        within=given.number("within", 0.01, zero=True) or 0.0,
        seed=given.whole("seed", 0) or 0,
        out=given.path("out") if given.has("out") else run,
        overwrite=given.flag("overwrite"),
    )


def _exits(texts: Sequence[str]) -> dict[str, ExitHead]:
    found: dict[str, ExitHead] = {}
    for text in texts:
        point, _, head = text.partition(":")
        if not head or not point or point in found:
            raise ConfigError(f"exits={text}: name each point once with a head, as in exits=pool1:mlp,pool2:conv:16")
        found[point] = head_of(head, f"exits={text}")
    return found
