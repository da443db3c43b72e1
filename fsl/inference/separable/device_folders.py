"""The parts of a separable network in folders, one a device: its own channels' weights and no others.

| file | what |
|---|---|
| `device<n>/device.json` | the network's class and arguments where known, gates, numbers, digests |
| `device<n>/weights.safetensors` | the device's tensors, by the names of the whole network |
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import CheckpointError, ConfigError
from fsl.export.architecture import built_model, described_model
from fsl.export.whole_folder import written_whole
from fsl.files import load_tensors, save_tensors, write_text
from fsl.inference.separable.gates import Gates
from fsl.inference.separable.group_part import GroupPart, part_of
from fsl.inference.separable.separable_model import SeparableModel
from fsl.inference.separable.separable_plan import plan_of
from fsl.installed import __version__
from fsl.messages.strict_json import from_json, to_json

FORMAT = 1
MARK = "separable.json"
CONFIG, WEIGHTS = "device.json", "weights.safetensors"
_LONGEST = 1 << 20  # characters of a description
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class DescribedDevice:
    """What a device's folder says. `digest`: of the whole network; `fingerprint`: of all else here, and its tensors."""

    format: int
    fsl: str
    network: dict[str, Any]
    input_shape: tuple[int, ...]
    devices: int
    device: int
    dtype: str
    gates: tuple[tuple[tuple[bool, ...], ...], ...]
    digest: str
    fingerprint: str


@dataclass(frozen=True)
class SeparablePart:
    """What one device holds: its groups of channels, the digest of the network that they are of, and its precision."""

    group: GroupPart
    digest: str
    dtype: torch.dtype


@checks_types()
def separable_part(model: SeparableModel, device: int) -> SeparablePart:
    """Returns a device's part of a network, with the gates that it has now: copies, on the CPU."""
    part = model.part(device)
    for layer in part.layers.values():
        layer.cpu()
    return SeparablePart(part, model.digest(), _dtype(model))


@checks_types()
def save_devices(
    folder: str | os.PathLike[str],
    model: SeparableModel,
    *,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a folder for each device into `folder`; returns them. Each goes to its device, and to nobody else.

    `arguments`: of the network's class, where that is not one of fsl's. ConfigError where the folder has other files,
    or these already and not `overwrite`.
    """
    network, digest = described_model(model.network, None, arguments), model.digest()
    if network["hugging_face"]:
        raise ConfigError("a network of Hugging Face cannot be saved by device; wrap its layers in a Sequential")
    parts = [separable_part(model, device) for device in range(model.devices)]
    with written_whole(folder, MARK, overwrite) as new:
        for device, part in enumerate(parts):
            own = new / f"device{device}"
            own.mkdir()
            told = DescribedDevice(
                format=FORMAT,
                fsl=__version__,
                network=network,
                input_shape=model.plan.input_shape,
                devices=model.devices,
                device=device,
                dtype=str(part.dtype).removeprefix("torch."),
                gates=model.gates.links,  # type: ignore[arg-type]
                digest=digest,
                fingerprint="",
            )
            told = replace(told, fingerprint=_fingerprint(told, part.group.state()))
            save_tensors(own / WEIGHTS, part.group.state(), {"format": "pt"}, durable=False)
            write_text(own / CONFIG, to_json(told) + "\n")
        write_text(new / MARK, to_json(_SavedGroup(FORMAT, digest, model.devices)) + "\n")
    return tuple(Path(folder) / f"device{device}" for device in range(model.devices))


@checks_types()
def load_device(
    folder: str | os.PathLike[str], *, network: nn.Module | None = None, allowed: Sequence[str] = ()
) -> SeparablePart:
    """Returns a device's part from its folder, on the CPU.

    `network`: an object of the network's class, whose weights do not count; without it the folder names the class, of
    fsl's models or of packages that you trust (`allowed`). CheckpointError, in one line, for a folder that is damaged
    or whose weights are not those that were saved.
    """
    path = Path(folder)
    told = _read(path)
    dtype = _DTYPES[told.dtype]
    with torch.device("meta"):
        empty = built_model(told.network, path, allowed) if network is None else network
    empty = _without_weights(empty, dtype)
    gates = _gates(told, path)
    plan = plan_of(empty, told.devices, told.input_shape)
    if gates.blocks != len(plan.blocks) or gates.devices != plan.devices or not 0 <= told.device < told.devices:
        raise CheckpointError(f"{path / CONFIG}: its gates or its device do not fit its network; write the folder anew")
    group = part_of(empty, plan, gates, told.device)
    weights = load_tensors(path / WEIGHTS)
    _fill(group, weights, path)
    if _fingerprint(told, group.state()) != told.fingerprint:
        raise CheckpointError(
            f"{path} has other weights or gates than those that were saved; restore it, or save it anew"
        )
    return SeparablePart(group, told.digest, dtype)


@dataclass(frozen=True)
class _SavedGroup:
    format: int
    digest: str
    devices: int


def _read(path: Path) -> DescribedDevice:
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {CONFIG}: give a device's folder, as save_devices wrote it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read ({error}); write the folder anew") from None
    if len(text) > _LONGEST:
        raise CheckpointError(
            f"{path / CONFIG} has {len(text)} characters, and none that save_devices wrote is so long"
        )
    try:
        told = from_json(text, DescribedDevice)
    except ValueError as error:
        raise CheckpointError(f"{path / CONFIG} describes no device ({error}); write the folder anew") from None
    if told.format != FORMAT:
        raise CheckpointError(f"{path / CONFIG} is of format {told.format}, and this fsl reads {FORMAT}")
    if told.dtype not in _DTYPES or len(told.digest) != 64 or not _is_hex(told.digest):
        raise CheckpointError(f"{path / CONFIG} has a dtype or a digest that cannot be; write the folder anew")
    return told


def _gates(told: DescribedDevice, path: Path) -> Gates:
    try:
        return Gates(told.gates)
    except ConfigError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from None


def _fill(group: GroupPart, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a file into layers without any; CheckpointError where these are not their tensors."""
    wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in group.state().items()}
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if wanted != given:
        other = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
        raise CheckpointError(f"{path / WEIGHTS} has other tensors than its device, as {other[0]!r}; write it anew")
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: {name!r} holds values that are not finite; restore it, or save it anew")
    for name, layer in group.layers.items():
        prefix = f"{name}."
        own = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        layer.load_state_dict(own, assign=True)
        layer.requires_grad_(False)


def _without_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a model of this structure without memory for weights."""
    return model.to(device="meta", dtype=dtype).eval()


def _fingerprint(told: DescribedDevice, tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256(to_json(replace(told, fingerprint="")).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _dtype(model: SeparableModel) -> torch.dtype:
    found = {parameter.dtype for parameter in model.network.parameters()}
    if len(found) != 1 or not found <= set(_DTYPES.values()):
        raise ConfigError(
            f"the network's weights are {', '.join(map(str, found))}; devices compute in float32 or float64"
        )
    return found.pop()


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)
