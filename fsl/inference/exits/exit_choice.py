"""Which early exits a run trains with its model or behind it, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.inference.exits.exit_heads import HEADS, ExitHead, exit_head
from fsl.inference.exits.exit_losses import Distillation

HowInRuns = Literal["joint", "classifier_wise", "frozen"]
_AFTERWARDS = {"epochs": 10, "batch_size": 32, "learning_rate": 1e-3}  # where heads are trained behind the run


@checks_types("exits.", leave=("heads",))
@dataclass(frozen=True)
class Exits:
    """Early exits of a run: heads by the points of the model behind which they read, and how they are trained.

    `heads`: as {"pool1": "conv", "pool2": ConvExit(width=64)}; a module of yours is a head, too.

    `how`: "joint" trains them in the run, each on the side of the cut where its point lies, by `weights` (by point;
    1 where none is given) beside the model's own loss. "classifier_wise" and "frozen" leave the run as it is, and
    train the heads behind it on training rows, by labels and with `distillation` by the model's outputs, for `epochs`
    (10) in batches of `batch_size` (32) at `learning_rate` (0.001).

    `confidence`: "max_softmax" or "entropy", which says of rows how sure an exit is. `within`: the accuracy that may be
    lost for fewer multiply-adds, by which the confidence is chosen from which rows leave, on rows that heads have not
    seen. ConfigError for values that cannot be, and for those that would not count.
    """

    heads: Mapping[str, Any]
    how: HowInRuns = "joint"
    weights: Mapping[str, float] = field(default_factory=dict)
    distillation: Distillation | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    confidence: str = "max_softmax"
    within: float = 0.01

    def __post_init__(self) -> None:
        one_of("exits.how", self.how, get_args(HowInRuns))
        one_of("exits.confidence", self.confidence, ("max_softmax", "entropy"))
        if not isinstance(self.heads, Mapping) or not self.heads or not all(isinstance(p, str) for p in self.heads):
            raise ConfigError(f"exits.heads={self.heads!r}: give heads by points, as {{'pool1': 'conv'}}")
        for point, head in self.heads.items():
            if isinstance(head, type) or not isinstance(head, nn.Module | ExitHead | str):
                raise ConfigError(f"exits.heads.{point}={head!r}: give the name of a head, {_KINDS}, or an object")
            if not isinstance(head, nn.Module) and exit_head(head).fuses:
                raise ConfigError(
                    f"exits.heads.{point}={exit_head(head).kind}: it takes several activations, and exits of a "
                    "run one; train it with fsl.inference.exits.train_exits"
                )
        if not 0 <= self.within <= 1:
            raise ConfigError(f"exits.within={self.within}: a share of accuracy, from 0 to 1")
        self._refuse_unused()
        for name in ("epochs", "batch_size"):
            if (value := getattr(self, name)) is not None and value < (1 if name == "epochs" else 2):
                raise ConfigError(f"exits.{name}={value}: it must be at least {1 if name == 'epochs' else 2}")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"exits.learning_rate={self.learning_rate}: it must be a number above 0")

    def _refuse_unused(self) -> None:
        if self.how == "joint":
            given = [name for name in ("distillation", *_AFTERWARDS) if getattr(self, name) is not None]
            if given:
                raise ConfigError(
                    f"exits.{given[0]}: how='joint' trains heads in the run, by its labels, batches and "
                    "optimizer; leave it out, or use how='frozen'"
                )
            if other := [point for point in self.weights if point not in self.heads]:
                raise ConfigError(f"exits.weights.{other[0]}: there is no exit; those are {', '.join(self.heads)}")
            if wrong := [point for point, weight in self.weights.items() if not 0 <= weight < float("inf")]:
                raise ConfigError(f"exits.weights.{wrong[0]}={self.weights[wrong[0]]}: a number of at least 0")
        elif self.weights:
            raise ConfigError(f"exits.weights: how={self.how!r} has none; use how='joint'")
        if self.how == "classifier_wise" and self.distillation is not None:
            raise ConfigError("exits.distillation: how='classifier_wise' goes by labels; use how='frozen'")

    def afterwards(self, name: Literal["epochs", "batch_size", "learning_rate"]) -> Any:
        """Returns an option of heads that are trained behind the run."""
        given = getattr(self, name)
        return _AFTERWARDS[name] if given is None else given


def head_of(given: Any, written: str) -> ExitHead:
    """Read a head of a configuration: its name, with a width as in "conv:16", or {"kind": "conv", "width": 16}.

    `written`: as the user wrote it, where a ConfigError begins.
    """
    if isinstance(given, ExitHead):
        return given
    sizes: dict[str, Any] = {}
    if isinstance(given, Mapping):
        sizes = {str(name): value for name, value in given.items()}
        kind = sizes.pop("kind", None)
    else:
        kind, colon, width = str(given).partition(":")
        if colon and (not width.isdecimal() or not int(width) or kind == "linear"):
            raise ConfigError(f"{written}: a width is a whole number from 1 on, of mlp, conv or sl_vit")
        sizes = {"width": int(width)} if colon else {}
    found = next((one for one in HEADS if one.kind == kind), None)
    if found is None:
        raise ConfigError(f"{written}: name a head, one of {_KINDS}, as conv, conv:16 or {{kind: conv}}")
    try:
        return found(**sizes)
    except TypeError:
        raise ConfigError(f"{written}: {kind} has no such sizes: {', '.join(sizes)}") from None


def heads_of(given: Mapping[str, Any], above: str = "") -> dict[str, ExitHead]:
    """Read the heads of a configuration by point; a name with dots may be given as mappings in each other."""
    found: dict[str, ExitHead] = {}
    for name, value in given.items():
        point = f"{above}{name}"
        if isinstance(value, Mapping) and "kind" not in value:
            found |= heads_of(value, f"{point}.")
        else:
            found[point] = head_of(value, f"exits.{point}={value}")
    return found


def weights_of(given: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """Read the weights of a configuration by point, as `heads_of` reads heads."""
    found: dict[str, float] = {}
    for name, value in given.items():
        point = f"{above}{name}"
        if isinstance(value, Mapping):
            found |= weights_of(value, f"{point}.")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"exit_training.weights.{point}={value!r}: give a number of at least 0")
        else:
            found[point] = float(value)
    return found


_KINDS = ", ".join(one.kind for one in HEADS if not one.fuses)
