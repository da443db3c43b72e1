"""A trained model's segments as programs, one folder: each is checked before the folder is there.

| file | what |
|---|---|
| `manifest.json` | what enters and leaves each segment, and each file's size and SHA-256 |
| `front.pt2`, `back.pt2`, `tail.pt2` | programs of `torch.export` |
| `front.onnx`, ... | the same as ONNX models |
| `whole.safetensors` | the whole model's weights, with the unsplit model's keys |
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fsl.errors import ConfigError, one_of
from fsl.export import onnx_programs
from fsl.export.flat_segment import FlatSegment, Passed, flat_segments
from fsl.export.program_checks import Difference, compared
from fsl.export.torch_programs import exported_program, run_program, save_program
from fsl.export.trained_model import Folder, Inputs, TrainedModel
from fsl.export.whole_folder import written_whole
from fsl.files import save_tensors, write_json
from fsl.importing.import_paths import public_path
from fsl.installed import __version__
from fsl.segments.calling import outputs_of
from fsl.segments.tensor_trees import Values, tensors_of
from fsl.split.cutting import SplitModel, split

MANIFEST, WHOLE = "manifest.json", "whole.safetensors"
FORMATS = ("pt2", "onnx")
FORMAT = 1


def export_trained(
    trained: TrainedModel,
    folder: Folder,
    *,
    cut: str | Sequence[str] | None = None,
    device: int | None = None,
    formats: str | Sequence[str] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a trained model's segments as programs into a folder, whole or not at all; returns the manifest.

    `cut`: other cuts than the run's, where all devices share one front. `device`: whose front, where each has its own.
    `formats`: of "pt2" and "onnx"; None: both, or pt2 alone where ONNX is not installed. ConfigError for what cannot be
    exported, RunError for a program that computes something else than its module.
    """
    chosen, left_out = _formats(formats)
    whole = trained.whole(device)
    inputs = trained.inputs()
    parts = _cut(whole, trained, cut, inputs)
    flats = flat_segments(parts, inputs.two, inputs.three)
    with written_whole(folder, MANIFEST, overwrite) as new:
        programs = {name: exported_program(name, flat, given) for name, (flat, given, _) in _named(parts, flats)}
        if formats is None and "onnx" in chosen and (fault := _not_onnx(programs, parts, flats, new)) is not None:
            chosen, left_out = ["pt2"], [f"no ONNX models: {fault}"]
        checks = _write_programs(programs, parts, flats, chosen, inputs.rows, new)
        chained = {form: _chained(parts, form, whole, inputs.rows, new) for form in chosen}
        save_tensors(new / WHOLE, trained.weights(device), {"format": "pt"}, durable=False)
        manifest = {
            "format": FORMAT,
            "fsl": __version__,
            "torch": torch.__version__,
            "model": str(public_path(type(trained.module))),
            "cut": list(parts.cuts),
            "device": device,
            **trained.facts,
            "remarks": [*trained.remarks, *left_out],
            "segments": [
                {
                    "name": part.name,
                    "place": part.place,
                    "parameters": sum(p.numel() for p in part.module.parameters()),
                    "inputs": given.described(),
                    "input_structure": _structure(given.three),
                    "outputs": outputs.described(),
                    "output_structure": _structure(outputs.three),
                    "programs": {
                        form: {**_file(new, f"{part.name}.{form}"), **_in_words(checks[part.name, form])}
                        for form in chosen
                    },
                }
                for part, (_, given, outputs) in zip(parts.segments, flats, strict=True)
            ],
            "chained": {form: _in_words(difference) for form, difference in chained.items()},
            "checked_rows": [1, len(inputs.rows)],
            "whole": _file(new, WHOLE),
        }
        write_json(new / MANIFEST, manifest)
    return manifest


def _formats(given: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Returns the formats to write, and a remark on one that is left out because it is not installed."""
    missing = onnx_programs.missing()
    install = f"{', '.join(missing)} not installed; pip install 'fsl-flower[export]'"
    if given is None:
        return (["pt2"], [f"no ONNX models: {install}"]) if missing else (list(FORMATS), [])
    chosen = [given] if isinstance(given, str) else list(given)
    for one in chosen:
        one_of("formats", one, FORMATS)
    if not chosen:
        raise ConfigError(f"formats=[]: give one or several of {', '.join(FORMATS)}")
    if "onnx" in chosen and missing:
        raise ConfigError(f"formats=onnx: {install}")
    return list(dict.fromkeys(chosen)), []


def _cut(whole: nn.Module, trained: TrainedModel, cut: str | Sequence[str] | None, inputs: Inputs) -> SplitModel:
    if cut is not None and trained.devices is not None:
        raise ConfigError(
            f"cut={cut!r}: fronts of this run are private, and only fit the back they were trained with, cut after "
            f"{', '.join(trained.cuts)}; leave cut out"
        )
    if cut is None and not trained.cuts:
        raise ConfigError("devices of this run were cut at different places, and an export is of one cut: say cut=...")
    own = cut is None
    parts = split(whole, trained.cuts if own else cut, inputs.three, trained.places if own else None)
    for part in parts:
        part.module.eval()
    return parts


def _named(
    parts: SplitModel, flats: Sequence[tuple[FlatSegment, Passed, Passed]]
) -> list[tuple[str, tuple[FlatSegment, Passed, Passed]]]:
    return list(zip(parts.names, flats, strict=True))


def _write_programs(
    programs: dict[str, ExportedProgram],
    parts: SplitModel,
    flats: Sequence[tuple[FlatSegment, Passed, Passed]],
    formats: Sequence[str],
    rows: Values,
    new: Path,
) -> dict[tuple[str, str], Difference]:
    """Write each segment in each format, and run it on one row and on all; returns how far it is from its module."""
    checks: dict[tuple[str, str], Difference] = {}
    batches = [tensors_of(rows[:1]), tensors_of(rows)]
    for name, (flat, given, outputs) in _named(parts, flats):
        with torch.no_grad():
            expected = [flat(*_copies(batch)) for batch in batches]
        for form in formats:
            path = new / f"{name}.{form}"
            if form == "onnx" and not path.exists():
                onnx_programs.save_onnx(name, programs[name], given, outputs, path)
            elif form == "pt2":
                save_program(programs[name], path)
            checks[name, form] = Difference()
            for batch, right in zip(batches, expected, strict=True):
                checks[name, form] |= compared(f"{name}.{form}", _run(path, batch), right)
        batches = expected
    return checks


def _not_onnx(
    programs: dict[str, ExportedProgram],
    parts: SplitModel,
    flats: Sequence[tuple[FlatSegment, Passed, Passed]],
    new: Path,
) -> str | None:
    """Write all segments as ONNX models; returns why it cannot be, and leaves none then."""
    try:
        for name, (_, given, outputs) in _named(parts, flats):
            onnx_programs.save_onnx(name, programs[name], given, outputs, new / f"{name}.onnx")
    except ConfigError as error:
        for path in new.glob("*.onnx*"):
            path.unlink()
        return str(error)
    return None


def _chained(parts: SplitModel, form: str, whole: nn.Module, rows: Values, new: Path) -> Difference:
    """Returns how far all programs in a row are from the whole model."""
    passed = tensors_of(rows)
    for name in parts.names:
        passed = _run(new / f"{name}.{form}", passed)
    with torch.no_grad():
        return compared(f"{' and '.join(parts.names)} ({form}) in a row", passed, (outputs_of(whole, rows.clone()),))


def _run(path: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return onnx_programs.run_onnx(path, inputs) if path.suffix == ".onnx" else run_program(path, _copies(inputs))


def _copies(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns copies, for a segment whose first layer works in place."""
    return tuple(tensor.clone() for tensor in tensors)


def _structure(values: Values) -> Any:
    """Returns how tensors lie in what the model passes, as nested JSON; "*" is a tensor."""
    return "*" if isinstance(values, Tensor) else json.loads(values.structure)


def _file(folder: Path, name: str) -> dict[str, Any]:
    with (folder / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = {"file": name, "bytes": (folder / name).stat().st_size, "sha256": digest}
    beside = folder / f"{name}.data"
    return found | ({"weights": _file(folder, beside.name)} if beside.exists() else {})


def _in_words(difference: Difference) -> dict[str, float]:
    return {"largest_error": difference.absolute, "relative_error": difference.relative}
