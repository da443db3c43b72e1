"""Calls a model, or its first segment, with a batch: a tensor, several inputs in a row, or inputs by name."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.segments.tensor_trees import Values, passed

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_IN_A_ROW = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Takes:
    """What a forward takes: inputs by name (`wanted` ones must be there), or so many in a row.

    `main`: the input that a model of Hugging Face cannot do without, though its forward has a default for it.
    """

    names: tuple[str, ...]
    wanted: tuple[str, ...]
    any_name: bool
    in_a_row: float
    main: str | None = None

    @staticmethod
    def of(forward: Callable[..., Any]) -> "Takes":
        """Read a forward's signature, without `self`; one that cannot be read takes one input."""
        try:
            parameters = list(inspect.signature(forward).parameters.values())[1:]
        except (TypeError, ValueError):
            return Takes((), (), False, 1)
        named = [p for p in parameters if p.kind in _NAMED]
        any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        return Takes(
            tuple(p.name for p in named),
            tuple(p.name for p in named if p.default is p.empty),
            any(p.kind is p.VAR_KEYWORD for p in parameters),
            math.inf if any_number else sum(p.kind in _IN_A_ROW for p in parameters),
        )


def takes(module: nn.Module) -> Takes:
    """Returns what a module's forward takes; a part of a cut model says so itself."""
    own = getattr(module, "takes", None)
    return own if isinstance(own, Takes) else _by_class(type(module))


def _by_class(kind: type[nn.Module]) -> Takes:
    if kind not in _KNOWN:
        found, main = Takes.of(kind.forward), getattr(kind, "main_input_name", None)
        _KNOWN[kind] = replace(found, main=main) if isinstance(main, str) and main in found.names else found
    return _KNOWN[kind]


_KNOWN: "WeakKeyDictionary[type[nn.Module], Takes]" = WeakKeyDictionary()


def call(module: nn.Module, values: Values) -> Any:
    """Returns what a module makes of a batch, or of what the segment before it passed.

    A dict whose keys the module's forward names is given by name, as `model(**batch)`; a tuple, where forward takes
    several inputs, in a row. Anything else is one argument.
    """
    return module(values) if isinstance(values, Tensor) else call_given(module, passed(values))


def call_given(module: nn.Module, given: Any) -> Any:
    """As `call`, for values in the structure in which the model passes them."""
    known = takes(module)
    if isinstance(given, dict) and (known.any_name or not set(known.names).isdisjoint(given)):
        _refuse_keys(module, list(given), known)
        return module(**given)
    if type(given) is tuple and 1 < len(given) <= known.in_a_row:
        return module(*given)
    return module(given)


def named_inputs(module: nn.Module, batch: Values) -> tuple[str, ...]:
    """Returns the names of a forward's inputs that a batch gives; none where it gives one input alone."""
    if isinstance(batch, Tensor):
        return ()
    given, known = passed(batch), takes(module)
    if isinstance(given, dict) and not set(known.names).isdisjoint(given):
        return tuple(given)
    if type(given) is tuple and 1 < len(given) <= known.in_a_row:
        return known.names[: len(given)]
    return ()


def outputs_of(module: nn.Module, values: Values) -> Tensor:
    """Returns a whole model's outputs for a batch: the tensor that it returns, or the `logits` of what it returns.

    ConfigError for anything else.
    """
    return picked(call(module, values), type(module).__name__)


def tried_outputs(module: nn.Module, values: Values, what: str) -> Tensor:
    """As `outputs_of`, for a first batch (`what`, in words): ConfigError where it is not what the module takes."""
    refuse_unfit(module, values, what)
    try:
        return outputs_of(module, values)
    except ConfigError:
        raise
    except Exception as error:
        if isinstance(given := _by_name(values), dict) and _wants_a_tensor(module, given, error):
            name, (wanted, *_) = _name_of(module), (*takes(module).names, "input")
            raise ConfigError(
                f"{what} has the keys {', '.join(given)}, and the forward of {name} takes one tensor, {wanted}: give "
                f"(inputs, targets) with one tensor, call its key {wanted}, or wrap {name} in a module whose forward "
                "takes these names"
            ) from error
        raise


def refuse_unfit(module: nn.Module, values: Values, what: str) -> None:
    """Raise ConfigError for a batch that lacks inputs which a module's forward has no default for."""
    known, given = takes(module), _by_name(values)
    count = len(known.wanted)
    if count < 2 or isinstance(given, tuple | list):
        return
    if given is None:
        shown = ", ".join(f"'{name}': ..." for name in known.wanted)
        raise ConfigError(
            f"{what} is one tensor, and the forward of {_name_of(module)} takes {count} inputs, "
            f"{', '.join(known.wanted)}: give them by name, as ({{{shown}}}, targets)"
        )
    if isinstance(given, dict) and set(known.names).isdisjoint(given):
        raise ConfigError(
            f"{what} has the keys {', '.join(map(str, given))}, and the forward of {_name_of(module)} takes "
            f"{', '.join(known.wanted)}: call the keys so"
        )


def _by_name(values: Values) -> Any:
    """Returns what a batch passes; None for one tensor."""
    return None if isinstance(values, Tensor) else passed(values)


def _wants_a_tensor(module: nn.Module, given: dict[str, Any], error: Exception) -> bool:
    """Returns whether a module failed on a dict, as this error tells, since it takes one tensor."""
    if not set(takes(module).names).isdisjoint(given):
        return False
    return isinstance(error, TypeError | AttributeError) and "dict" in str(error)


def _name_of(module: nn.Module) -> str:
    return str(getattr(module, "model_name", type(module).__name__))


def picked(given: Any, model: str) -> Tensor:
    """Returns the outputs among what a model returns; ConfigError where it returns neither a tensor nor logits."""
    found = given.get("logits") if isinstance(given, Mapping) else getattr(given, "logits", given)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"{model} returns a {type(given).__name__}; a model gives one tensor of outputs (B, ...), or an object "
            "with one called logits: wrap it in a module that returns that"
        )
    return found


_OUTPUTS = ("labels", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "logits_to_keep")


def _refuse_keys(module: nn.Module, given: list[str], known: Takes) -> None:
    name = _name_of(module)
    if known.main is not None and not {known.main, "inputs_embeds"} & set(given):
        others = ", ".join(name for name in known.names if name != known.main and name not in _OUTPUTS)
        raise ConfigError(
            f"a batch has the keys {', '.join(given)}, and {name} wants {known.main} (and takes {others}); rename the "
            "keys of the items"
        )
    if missing := [key for key in known.wanted if key not in given]:
        raise ConfigError(
            f"a batch has {', '.join(given)}, and {name} wants {', '.join(missing)} too; give it in each item"
        )
    if (known.main is not None or not known.any_name) and (other := [key for key in given if key not in known.names]):
        raise ConfigError(
            f"a batch has {', '.join(other)}, which {name} does not take; it takes {', '.join(sorted(known.names))}: "
            "leave the others out of the items"
        )
