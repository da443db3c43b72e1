"""A model with exits in a folder, beside what else a run's folder has: safetensors and JSON, never pickle.

| file | what |
|---|---|
| `exits/exits.json` | the model's class and arguments where known, its exits, confidence, thresholds, and a digest |
| `exits/model.safetensors` | the model's own weights |
| `exits/heads.safetensors` | heads (`heads.<number>.`) and predictors (`predictors.<number>.`) |
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import CheckpointError, ConfigError, WireError
from fsl.export.architecture import built_model, described_model, fill
from fsl.export.whole_folder import written_whole
from fsl.faults import said
from fsl.files import load_tensors, save_tensors, write_text
from fsl.inference.exits.exit_description import (
    FORMAT,
    DescribedExits,
    blank_input,
    described_exits,
    described_input,
    empty_head,
    spec_of,
)
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_predictor import ExitPredictor
from fsl.inference.exits.exit_thresholds import Thresholds
from fsl.inference.exits.threshold_search import ThresholdLines
from fsl.installed import __version__
from fsl.messages.strict_json import from_json, to_json
from fsl.models.lora import has_adapters

FOLDER, CONFIG, BACKBONE, HEADS = "exits", "exits.json", "model.safetensors", "heads.safetensors"
_LONGEST = 1 << 20  # characters of a description


@dataclass(frozen=True)
class SavedExits:
    """What a folder has: the model with its exits, the thresholds that it was saved with, and lines through some."""

    model: ExitModel
    thresholds: Thresholds | None
    lines: ThresholdLines | None


@checks_types(leave=("thresholds",))
def save_exits(
    folder: str | os.PathLike[str],
    model: ExitModel,
    *,
    thresholds: Any = None,
    lines: ThresholdLines | None = None,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model with its exits into the folder `exits` of a run's or any other folder; returns that folder.

    `thresholds`: as `ExitModel.infer` takes them. `lines`: thresholds by bandwidth. `arguments`: of the model's class,
    as `save_pretrained` takes them. ConfigError for what JSON cannot name: a confidence or predictors of the user's, or
    adapters; and, with nothing written, for whatever `load_exits` would not take back.
    """
    if model.confidence_name is None:
        raise ConfigError("confidence: a function of your own cannot be saved; use max_softmax or entropy")
    if has_adapters(model.backbone):
        raise ConfigError("the model has adapters; give the exits fsl.merged(model), a plain model, before saving")
    backbone = described_model(model.backbone, None, arguments)
    told = DescribedExits(
        format=FORMAT,
        fsl=__version__,
        backbone=backbone,
        input=described_input(model.example),
        outputs=model.outputs_shape,
        exits=described_exits(model),
        confidence=model.confidence_name,
        thresholds=None if thresholds is None else _finite(Thresholds.of(thresholds, model.exits)),
        lines=lines,
        digest=model.digest(),
    )
    with written_whole(Path(folder) / FOLDER, CONFIG, overwrite) as new:
        if backbone["hugging_face"]:
            model.backbone.config.save_pretrained(new)  # type: ignore[operator, union-attr]
        save_tensors(new / BACKBONE, model.backbone.state_dict(), {"format": "pt"}, durable=False)
        save_tensors(new / HEADS, _head_tensors(model), {"format": "pt"}, durable=False)
        write_text(new / CONFIG, to_json(told) + "\n")
        _try_back(new, model)
    return Path(folder) / FOLDER


@checks_types(leave=("heads",))
def load_exits(
    folder: str | os.PathLike[str],
    *,
    backbone: nn.Module | None = None,
    heads: Mapping[str, nn.Module] | None = None,
    allowed: Sequence[str] = (),
) -> SavedExits:
    """Returns the model with its exits that `save_exits` wrote, on the CPU, in evaluation mode.

    `folder`: that which `save_exits` was given. `backbone`: an object of the model's class, whose weights are replaced;
    without it the folder names the class, of fsl's models or Hugging Face's, or of packages that you trust (`allowed`).
    `heads`: modules for exits whose head was a module of the user's. ConfigError or CheckpointError, in one line, for a
    folder that gives no such model, or whose numbers are not those that were saved.
    """
    return _loaded(Path(folder) / FOLDER, backbone, heads or {}, allowed)


def _loaded(
    path: Path, backbone: nn.Module | None, heads: Mapping[str, nn.Module], allowed: Sequence[str]
) -> SavedExits:
    told = _read(path)
    model = built_model(told.backbone, path, allowed) if backbone is None else backbone
    weights, made = load_tensors(path / BACKBONE), load_tensors(path / HEADS)
    _refuse_unusable({**weights, **made}, path)
    fill(_in_precision(model, weights), weights, path)
    modules = {one.point: _head(told, k, made, heads, path) for k, one in enumerate(told.exits)}
    try:
        found = ExitModel(model, modules, blank_input(told.input), confidence=told.confidence)
        if any(one.predictor is not None for one in told.exits):
            found.put_predictors([_predictor(told, k, made, path) for k in range(len(told.exits))])
    except WireError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from None
    if found.exits != tuple(one.point for one in told.exits):
        raise CheckpointError(f"{path / CONFIG} has the exits in another order than the model; save it anew")
    fill(_in_precision(found.heads, made), _part(made, "heads"), path)
    fill(_in_precision(found.predictors, made), _part(made, "predictors"), path)
    if found.digest() != told.digest:
        raise CheckpointError(f"{path} has other numbers than those that were saved; restore it, or save it anew")
    return SavedExits(found, told.thresholds, told.lines)


def _try_back(path: Path, model: ExitModel) -> None:
    """Raise ConfigError unless what was written gives the model back."""
    own = {name: head for name, head, spec in zip(model.exits, model.heads, model.specs, strict=True) if spec is None}
    backbone, heads = copy.deepcopy((model.backbone, nn.ModuleDict(own)))
    try:
        _loaded(path, backbone.cpu(), dict(heads.cpu().items()), ())
    except Exception as error:  # whatever a user's modules raise
        why = said(error).replace(str(path), "the folder")
        raise ConfigError(f"nothing is written, since it could not be loaded again: {why}") from None


def _read(path: Path) -> DescribedExits:
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {FOLDER}/{CONFIG}: give a folder that save_exits wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read ({error}); write the folder anew") from None
    if len(text) > _LONGEST:
        raise CheckpointError(f"{path / CONFIG} has {len(text)} characters, and none that save_exits wrote is so long")
    try:
        told = from_json(text, DescribedExits)
    except ValueError as error:
        raise CheckpointError(f"{path / CONFIG} is no description of exits ({error}); write the folder anew") from None
    if told.format != FORMAT:
        raise CheckpointError(f"{path / CONFIG} is of format {told.format}, and this fsl reads {FORMAT}")
    counts = [len(one) for one in _threshold_rows(told)]
    if not told.exits or any(count != len(told.exits) for count in counts):
        raise CheckpointError(f"{path / CONFIG} has {len(told.exits)} exits and thresholds for {counts}; write it anew")
    return told


def _threshold_rows(told: DescribedExits) -> list[Sequence[Any]]:
    fixed = [] if told.thresholds is None else [told.thresholds.beta, told.thresholds.eta]
    return [*fixed, *([] if told.lines is None else [told.lines.beta, told.lines.eta])]


def _head(told: DescribedExits, k: int, made: Mapping[str, Tensor], given: Mapping[str, nn.Module], path: Path) -> Any:
    """Returns the head that an exit is to have; CheckpointError, before any memory is taken, for other shapes."""
    point, head = told.exits[k].point, told.exits[k].head
    if head.kind is None:
        if point not in given:
            raise ConfigError(
                f"{path}: the head at {point!r} is a module of the user's; give it (heads={{{point!r}: ...}})"
            )
        return _in_precision(given[point], _part(made, f"heads.{k}"))
    if point in given:
        raise ConfigError(f"heads: the head at {point!r} is fsl's {head.kind!r}, which the folder makes; leave it out")
    try:
        _refuse_other_shapes(empty_head(head, told.outputs), _part(made, f"heads.{k}"), path)
        return spec_of(head)
    except (ConfigError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the head at {point!r} cannot be made ({error})") from None


def _predictor(told: DescribedExits, k: int, made: Mapping[str, Tensor], path: Path) -> ExitPredictor:
    described = told.exits[k].predictor
    if described is None:
        raise CheckpointError(f"{path / CONFIG} has predictors for some exits and not for others; write it anew")
    with torch.device("meta"):
        empty = ExitPredictor(described.shape, described.width)
    weights = _part(made, f"predictors.{k}")
    _refuse_other_shapes(empty, weights, path)
    empty.load_state_dict(weights, assign=True)
    return empty.requires_grad_(True).eval()


def _refuse_other_shapes(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
        raise CheckpointError(f"{path / HEADS} has tensors of other shapes than {CONFIG} says; write the folder anew")


def _refuse_unusable(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{path}: '{name}' holds values that are not finite; restore the folder, or save it anew"
            )


def _in_precision(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Returns a module in the precision of its floating-point tensors in a file, where they have one."""
    found = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return module.to(found.pop()) if len(found) == 1 else module


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def _head_tensors(model: ExitModel) -> dict[str, Tensor]:
    parts = (("heads", model.heads), ("predictors", model.predictors))
    return {f"{name}.{key}": tensor for name, part in parts for key, tensor in part.state_dict().items()}


def _finite(thresholds: Thresholds) -> Thresholds:
    """Returns thresholds that JSON can hold: confidences with a name lie between 0 and 1."""
    return replace(thresholds, beta=tuple(min(max(beta, -1.0), 2.0) for beta in thresholds.beta))
