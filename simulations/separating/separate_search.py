"""`fsl-separate search`: divides a finished run's model over devices, and finds which maps they exchange."""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from fsl.simulations.console import print_table
from fsl.simulations.endings import tell
from fsl.simulations.fsl_export import TrainedRun, read_trained_run
from fsl.simulations.profiling.profiled_model import whole_of
from fsl.simulations.reports.tables import Table
from fsl.simulations.serving.serve_options import ServeOptions

from fsl import seeds
from fsl.data import Examples
from fsl.errors import ConfigError
from fsl.inference.separable import (
    Gates,
    SeparableModel,
    save_devices,
    search_gates,
    separable,
    separable_accuracy,
    separable_latency,
    train_separable,
)
from fsl.objective import CrossEntropy, Segmentation, TokenClassification
from fsl.run.observers import human_bytes
from fsl.split.coded_model import CodedModel

SEARCH_OPTIONS = (
    *("run", "front", "devices", "share", "epochs", "retrain", "batch_size", "learning_rate", "gate_rate"),
    *("compare", "device", "link", "seed", "out", "overwrite"),
)
_HELD_OUT = 0.1  # of the training rows, where the run has no test rows
FOLDER = "separable"


@dataclass(frozen=True)
class SearchOptions:
    """How a model is divided, searched and trained on, and where its devices' folders go."""

    run: Path
    front: int | None
    devices: int
    share: float
    epochs: int
    retrain: int
    batch_size: int
    learning_rate: float
    gate_rate: float
    compare: bool
    device: str
    link: str
    seed: int
    out: Path
    overwrite: bool

    @staticmethod
    def read(arguments: Sequence[str]) -> "SearchOptions":
        """Read a command line; ConfigError for an option that cannot be used."""
        given = ServeOptions(arguments, SEARCH_OPTIONS)
        if not given.has("run"):
            raise ConfigError("run must be given, the folder of a finished run; see fsl-separate --help")
        share = given.number("share", 0.25, zero=True)
        assert share is not None
        if share > 1:
            raise ConfigError(f"share={share:g}: of the bytes of all links, from 0 to 1")
        run = given.path("run")
        out = given.path("out") if given.has("out") else run / FOLDER
        overwrite = given.flag("overwrite")
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
            raise ConfigError(f"out={out}: it is there already; give overwrite=true, or another folder")
        return SearchOptions(
            run=run,
            front=given.whole("front", None),
            devices=given.whole("devices", 4) or 0,
            share=share,
            epochs=given.whole("epochs", 5, 1) or 5,
            retrain=given.whole("retrain", 5, 1) or 5,
            batch_size=given.whole("batch_size", 64, 2) or 64,
            learning_rate=given.number("learning_rate", 1e-3) or 1e-3,
            gate_rate=given.number("gate_rate", 0.05) or 0.05,
            compare=given.flag("compare"),
            device=given.text("device", "pi4"),
            link=given.text("link", "wifi_75"),
            seed=given.whole("seed", 0) or 0,
            out=out,
            overwrite=overwrite,
        )


def separate_search(arguments: Sequence[str]) -> None:
    """Search, train on, tell what that gives, and write the devices' folders."""
    options = SearchOptions.read(arguments)
    run = read_trained_run(options.run)
    model = _divided(run, options)
    train, held, kind = _rows(run, options.seed)
    budget = int(options.share * float(model.link_bytes().sum()))
    lines = [_line("all links, as trained", model, held, options)]
    found = search_gates(
        copy.deepcopy(model),
        train,
        map_bytes=budget,
        objective=run.objective,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        gate_rate=options.gate_rate,
        seed=options.seed,
    )
    searched = _trained_with(model, found.gates, train, run, options)
    lines.append(_line("searched", searched, held, options))
    if options.compare:
        others = {"random, equal bytes": model.random_links(searched.bytes_of().maps, options.seed)}
        for name, gates in {**others, "no links": model.no_links()}.items():
            lines.append(_line(name, _trained_with(model, gates, train, run, options), held, options))
    tell(f"accuracy of {len(held)} {kind}; bytes of one image; ms predicted for {options.device}, {options.link}")
    print_table(Table(("network", "links", "maps", "all bytes", "accuracy", "ms"), tuple(lines)), "", "")
    save_devices(options.out, searched, arguments=run.trained.arguments, overwrite=options.overwrite)
    tell(f"devices: {os.path.relpath(options.out)}/device0 to device{options.devices - 1}")


def _divided(run: TrainedRun, options: SearchOptions) -> SeparableModel:
    whole = whole_of(run.trained, options.front, f"run={options.run}")
    if isinstance(whole, CodedModel):
        raise ConfigError(f"run={options.run}: its model has a trained codec at its cut, which cannot be divided")
    many = isinstance(run.objective, Segmentation | TokenClassification)  # classes a row
    if many or not isinstance(run.objective, CrossEntropy):
        raise ConfigError(
            f"run={options.run}: it was trained for {type(run.objective).__name__}; this command takes classes, one a "
            "row: use fsl.inference.separable for others"
        )
    model = separable(whole, devices=options.devices, input_shape=run.data.train.input_shape)
    separable_latency(model, devices=options.device, link=options.link)  # refuses a profile that does not exist
    return model


def _rows(run: TrainedRun, seed: int) -> tuple[Examples, Examples, str]:
    """Returns rows to train on, rows that are measured on, and what these are."""
    train = run.data.train.of_one_length()
    if run.data.test is not None:
        return train, run.data.test.of_one_length(), "test rows"
    order = torch.randperm(len(train), generator=seeds.torch_generator(seed, "rows that gates do not see"))
    held = max(1, round(_HELD_OUT * len(train)))
    return train.subset(order[held:]), train.subset(order[:held]), "training rows, which the run saw and the search not"


def _trained_with(
    model: SeparableModel, gates: Gates, train: Examples, run: TrainedRun, options: SearchOptions
) -> SeparableModel:
    """Returns a copy with these gates, trained with them from the run's weights."""
    own = copy.deepcopy(model)
    own.gates = gates
    train_separable(
        own,
        train,
        objective=run.objective,
        epochs=options.retrain,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        decay_at=max(1, round(0.7 * options.retrain)),
        seed=options.seed,
    )
    return own


def _line(name: str, model: SeparableModel, held: Examples, options: SearchOptions) -> tuple[str, ...]:
    size = model.bytes_of()
    latency = separable_latency(model, devices=options.device, link=options.link)
    return (
        name,
        str(model.gates.count),
        human_bytes(size.maps),
        human_bytes(size.total),
        f"{separable_accuracy(model, held):.4f}",
        f"{1e3 * latency.seconds:.1f}",
    )
