"""A trained model as a folder: safetensors with the unsplit model's keys, and a configuration that says what it is.

| file | what |
|---|---|
| `fsl_config.json` | class and arguments of the model, where they are known; cut, segments, classes, seed, versions |
| `model.safetensors` | the whole model's weights |
| `back.safetensors`, `fronts/<device>.safetensors` | instead, where each device has a front of its own |

A model of Hugging Face's writes `model.safetensors` and `config.json` itself, so that `from_pretrained` reads them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import CheckpointError, ConfigError
from fsl.export.architecture import built_model, described_model, fill, is_hugging_face, trusted
from fsl.export.trained_model import Folder, TrainedModel, listed
from fsl.export.whole_folder import written_whole
from fsl.files import load_tensors, save_tensors, write_json
from fsl.installed import __version__
from fsl.models.lora import has_adapters, merged
from fsl.split.cutting import split

CONFIG, MODEL, BACK, FRONTS = "fsl_config.json", "model.safetensors", "back.safetensors", "fronts"
FORMAT = 1


def save_trained(
    trained: TrainedModel,
    folder: Folder,
    *,
    device: int | None = None,
    overwrite: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Path:
    """Write a trained model into a folder, whole or not at all; returns the folder.

    `device`: the one model that this device has, where fronts are private; None: the back, and all fronts by device.
    """
    every = trained.devices is not None and device is None
    weights = {} if every else trained.weights(device)
    whole = trained.plain() if every else trained.whole(device)
    arguments = trained.arguments if arguments is None else arguments
    config = {
        "format": FORMAT,
        "fsl": __version__,
        "model": described_model(trained.module, trained.target, arguments),
        "cut": list(trained.cuts),
        "segments": _segments(trained, whole),
        "devices": list(trained.devices) if every and trained.devices is not None else None,
        "device": device,
        **trained.facts,
    }
    with written_whole(folder, CONFIG, overwrite) as new:
        if every:
            _write_parts(trained, new)
            if is_hugging_face(whole):
                whole.config.save_pretrained(new)  # type: ignore[operator, union-attr]
        elif is_hugging_face(whole):
            # Adapters are put into the weights: transformers would leave them out without a word.
            plain = merged(whole) if has_adapters(whole) else whole
            plain.save_pretrained(new)  # type: ignore[operator]
        else:
            save_tensors(new / MODEL, weights, {"format": "pt"}, durable=False)
        write_json(new / CONFIG, config)
    return Path(folder)


@checks_types(leave=("model",))
def load_pretrained(
    folder: Folder, *, model: nn.Module | None = None, device: int | None = None, allowed: Sequence[str] = ()
) -> nn.Module:
    """Returns the model that `Run.save_pretrained` wrote into a folder, on the CPU, in evaluation mode.

    `model`: an object of the model's class, whose weights are replaced; without it the folder's configuration names the
    class, of fsl's models or Hugging Face's, or of packages that you trust (`allowed`). `device`: whose front, where
    the folder has one for each. ConfigError or CheckpointError, in one line, for a folder that gives no such model.
    """
    path = Path(folder)
    config = read_pretrained(path)
    described = config["model"]
    if model is not None and not isinstance(model, nn.Module):
        raise ConfigError(f"model={model!r}: give an object of the model's class, as MyModel(...)")
    devices = config["devices"]
    if devices is None and device is not None and device != config["device"]:
        owner = "one model for all devices" if config["device"] is None else f"the model of device {config['device']}"
        raise ConfigError(f"device={device}: {path} has {owner}; leave device out")
    if devices is not None and device not in devices:
        raise ConfigError(f"device={device}: {path} has a front for each of its devices; give one of {listed(devices)}")
    if described["hugging_face"] and devices is None and model is None:
        return _from_pretrained(described, path, allowed)
    if model is None:
        model = built_model(described, path, allowed)
    fill(model, _weights(path, None if devices is None else device, model), path)
    return model.eval()


def read_pretrained(path: Path) -> dict[str, Any]:
    """Returns a folder's configuration; CheckpointError for a folder that has none, or one of another format."""
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} has no {CONFIG}: give a folder that run.save_pretrained or fsl-export wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read ({error}); write the folder anew") from None
    keys = ("format", "model", "devices", "device")
    if not isinstance(config, dict) or any(key not in config for key in keys) or not isinstance(config["model"], dict):
        raise CheckpointError(f"{path / CONFIG} is no configuration of a saved model; write the folder anew")
    if config["format"] != FORMAT:
        raise CheckpointError(f"{path / CONFIG} is of format {config['format']!r}, and this fsl reads {FORMAT}")
    return config


def _from_pretrained(described: Mapping[str, Any], path: Path, allowed: Sequence[str]) -> nn.Module:
    model, told = trusted(str(described["class"]), path, allowed).from_pretrained(path, output_loading_info=True)
    if wrong := [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in told.get(kind, ())]:
        raise CheckpointError(f"{path}: '{wrong[0]}' is in the file or in the model, and not in both; save it anew")
    loaded: nn.Module = model.eval()
    return loaded


def _weights(path: Path, device: int | None, model: nn.Module) -> dict[str, Tensor]:
    if device is None:
        found = load_tensors(path / MODEL)
    else:
        found = load_tensors(path / BACK) | load_tensors(path / FRONTS / f"{device}.safetensors")
    known = model.state_dict()
    # Hugging Face writes a tensor of two names once.
    tied = {name: key for name, key in _second_names(known).items() if name not in found and key in found}
    return found | {name: found[key] for name, key in tied.items()}


def _second_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns, for names of a tensor that has several, another of its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    return {name: other for same in names.values() for name in same for other in same if other != name}


def _segments(trained: TrainedModel, whole: nn.Module) -> dict[str, Any]:
    if not trained.cuts:  # devices were cut at different places
        return {}
    parts = split(whole, trained.cuts, trained.inputs().three, trained.places)
    return {part.name: {"place": part.place, "keys": list(part.module.state_dict())} for part in parts}


def _write_parts(trained: TrainedModel, new: Path) -> None:
    assert trained.devices is not None
    save_tensors(new / BACK, trained.shared(), {"format": "pt"}, durable=False)
    (new / FRONTS).mkdir()
    for device in trained.devices:
        save_tensors(new / FRONTS / f"{device}.safetensors", trained.front_of(device), {"format": "pt"}, durable=False)
