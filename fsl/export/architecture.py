"""Which class a saved model is of, with which arguments, and the way back to an object."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsl.errors import CheckpointError, ConfigError
from fsl.faults import said
from fsl.files import to_json
from fsl.importing.import_paths import locate, public_path, within
from fsl.models.layers import Stages
from fsl.models.low_rank import has_low_rank
from fsl.seeds import left_as_found

KNOWN = ("fsl.models", "transformers")  # packages whose classes a folder may name without being allowed to


def is_hugging_face(model: nn.Module) -> bool:
    """Returns whether a model is one of transformers', which saves and loads itself; `low_rank` makes another model."""
    library = sys.modules.get("transformers")  # a model of its classes has imported it
    return library is not None and isinstance(model, library.PreTrainedModel) and not has_low_rank(model)


def described_model(
    model: nn.Module, target: str | None = None, arguments: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what a folder says of a model: the import path of its class or maker, and the arguments, where known.

    `target` and `arguments` are those that a configuration or a user gave. ConfigError for arguments that are no JSON,
    or of which the class makes another model than this one.
    """
    path = target or str(public_path(type(model)))
    if is_hugging_face(model):
        return {"class": path, "arguments": None, "hugging_face": True}
    if arguments is not None:
        plain = _plain(arguments)
        if (fault := _other(model, type(model) if target is None else locate(target), plain)) is not None:
            raise ConfigError(
                f"arguments={plain}: {path} {fault}; give those that the model was made with, or leave them out"
            )
        return {"class": path, "arguments": plain, "hugging_face": False}
    known = _plain(model.made_with) if isinstance(model, Stages) else None
    if known is not None and _other(model, type(model), known) is not None:
        known = None  # somebody has changed the model since
    return {"class": path, "arguments": known, "hugging_face": False}


def built_model(described: Mapping[str, Any], folder: Path, allowed: Sequence[str]) -> nn.Module:
    """Returns a model of the class and arguments that a folder names.

    ConfigError where these are not known, or the class is in none of the packages that may be trusted.
    """
    path, arguments = str(described.get("class")), described.get("arguments")
    maker = trusted(path, folder, allowed)
    if described.get("hugging_face"):
        return maker(maker.config_class.from_pretrained(folder))
    if not isinstance(arguments, Mapping):
        raise ConfigError(
            f"{folder}: it does not say with which arguments {path} was made; give an object of the class (model=...), "
            "or save the model with arguments={...}"
        )
    with left_as_found():
        try:
            model = maker(**arguments)
        except Exception as error:
            raise ConfigError(f"{folder}: {path} cannot be made with {dict(arguments)} ({said(error)})") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{folder}: {path} made a {type(model).__name__}, no torch module; give model=")
    return model


def trusted(path: str, folder: Path, allowed: Sequence[str]) -> Any:
    """Returns the class or function of a path; ConfigError unless it was defined in a package that is trusted."""
    if isinstance(allowed, str) or not all(isinstance(name, str) for name in allowed):
        raise ConfigError(f"allowed={allowed!r}: it must be a list of packages' names, as in ['my_package']")
    packages = (*KNOWN, *allowed)
    if within(path, packages):
        maker = locate(path)
        home = f"{getattr(maker, '__module__', '')}.{getattr(maker, '__name__', '')}"
        if within(home, allowed) or (within(home, KNOWN) and isinstance(maker, type) and issubclass(maker, nn.Module)):
            return maker
    package = path.partition(".")[0]
    raise ConfigError(
        f"{folder}: its model is {path[:100]!r}, and a file alone makes no objects but models of "
        f"{' and '.join(KNOWN)}; give the object (model=...), or trust its package (allowed=[{package!r}])"
    )


def fill(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Put weights into a model; CheckpointError, in one line, where these are not its tensors."""
    wanted = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    given = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != given:
        other = sorted(name for name in {*shapes, *given} if shapes.get(name) != given.get(name))
        raise CheckpointError(
            f"{folder} does not fit {type(model).__name__}: they differ in {', '.join(other[:5])}"
            f"{', ...' if len(other) > 5 else ''}; give the model that was trained"
        )
    model.load_state_dict(dict(weights))


def _plain(arguments: Any) -> dict[str, Any]:
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"arguments={arguments!r}: it must be a mapping of names to values, as in {{'width': 64}}")
    try:
        return dict(json.loads(to_json(dict(arguments))))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"arguments={dict(arguments)!r}: they are kept as JSON ({error}); leave them out, and give load_pretrained "
            "the model"
        ) from None


def _other(model: nn.Module, maker: Any, arguments: Mapping[str, Any]) -> str | None:
    """Returns why a class or function does not make this model of these arguments, in words; None where it does."""
    with left_as_found():
        try:
            again = maker(**arguments)
        except Exception as error:
            return f"cannot be made with them ({said(error)})"
    same = isinstance(again, nn.Module) and _shapes(again) == _shapes(model) and repr(again) == repr(model)
    return None if same else "makes another model of them"


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
