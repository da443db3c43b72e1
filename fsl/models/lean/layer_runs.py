"""A model's front as a row of layers, and the runs in it that belong together: a layer, its norm, its activation."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from fsl.errors import ConfigError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid
)  # fmt: skip


@dataclass
class Place:
    """Where a module is: `parent` calls it `key`; `path` is its name in the model."""

    parent: nn.Module
    key: str
    path: str

    @property
    def module(self) -> nn.Module:
        """The module that is there now."""
        return self.parent.get_submodule(self.key)

    def put(self, module: nn.Module) -> None:
        """Put another module there, in the same mode."""
        setattr(self.parent, self.key, module.train(self.module.training))


@dataclass
class LayerRun:
    """A convolution or linear layer with the norm and the activation right behind it, where it has them.

    Of another module, as a pool, `layer` is its place, and the others are None.
    """

    layer: Place
    norm: Place | None = None
    activation: Place | None = None

    @property
    def is_layer(self) -> bool:
        """Whether it begins with a convolution or a linear layer."""
        return isinstance(self.layer.module, nn.Conv2d | nn.Linear)

    @property
    def last(self) -> Place:
        """Where its outputs come from."""
        return self.activation or self.norm or self.layer


def row_of(model: nn.Module, until: str | None, what: str) -> list[Place]:
    """Returns the places of a model's modules in their order, up to the end of the module `until` (None: all).

    Nested `nn.Sequential` are gone through, what is in other modules is not. ConfigError, naming `what` is made of the
    model, for a model that is no sequence and for a name that its sequence has not.
    """
    if type(model).forward is not nn.Sequential.forward:
        raise ConfigError(
            f"{what}: the model is a {type(model).__name__}; it takes models whose modules run in sequence (nested "
            "nn.Sequential), as those of fsl.models"
        )
    row = list(_gone_through(model, ""))
    if until is None:
        return row
    ends = [n for n, place in enumerate(row, start=1) if place.path == until or place.path.startswith(f"{until}.")]
    if not ends:
        names = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(f"until={until!r}: the model has no such module in its sequence; there are {names}")
    return row[: ends[-1]]


def runs_of(row: list[Place], activations: tuple[type[nn.Module], ...] = ACTIVATIONS) -> list[LayerRun]:
    """Returns a row's runs; each place is in one. `activations`: the kinds that count as such."""
    runs: list[LayerRun] = []
    for place in row:
        module, run = place.module, runs[-1] if runs else None
        follows = run is not None and run.is_layer
        if follows and run and run.norm is None and run.activation is None and isinstance(module, NORMS):
            run.norm = place
        elif follows and run and run.activation is None and isinstance(module, activations):
            run.activation = place
        else:
            runs.append(LayerRun(place))
    return runs


def _gone_through(parent: nn.Module, path: str) -> Iterator[Place]:
    for key, child in parent.named_children():
        if type(child).forward is nn.Sequential.forward:
            yield from _gone_through(child, f"{path}{key}.")
        else:
            yield Place(parent, key, f"{path}{key}")
