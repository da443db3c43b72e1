"""What the frozen parts of a model give to those that are trained, computed once where that can be kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fsl.data import Examples
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_stages import fuses, inputs_of
from fsl.segments.calling import outputs_of
from fsl.segments.known_rows import KnownRows
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, tensors_of


@dataclass(frozen=True)
class FeatureRows:
    """Of some rows: what each exit's head takes, whose first tensor predictors take, and the final exit's outputs."""

    heads: list[tuple[Tensor, ...]]
    final: Tensor


class FrozenFeatures:
    """The values at each exit, and the final outputs, of examples by their numbers; the backbone is in evaluation."""

    def __init__(self, model: ExitModel, examples: Examples, batch_size: int, *, once: bool = False) -> None:
        self._model = model
        self._counts: list[int] = []
        self._known = KnownRows(examples, self._computed, batch_size, model.place, once=once)

    def of(self, rows: Tensor) -> FeatureRows:
        """Returns those of these rows, on the model's accelerator; none of them takes part in a backward pass."""
        found = iter(self._known.of(rows))
        heads = [tuple(next(found) for _ in range(count)) for count in self._counts]
        return FeatureRows(heads, next(found))

    def _computed(self, inputs: Values) -> Sequence[Tensor]:
        model, values = self._model, inputs
        heads: list[tuple[Tensor, ...]] = []
        with evaluating(model.backbone, *(stage.module for stage in model.stages)):
            for stage, head in zip(model.stages, model.heads, strict=False):
                values = stage.run(values)
                # The next stage, and a head in training, may work in place.
                heads.append(tuple(tensor.clone() for tensor in inputs_of(values, fuses(head))))
            final = outputs_of(model.stages[-1].module, values)
        self._counts = [len(given) for given in heads]
        return [*(tensor for given in heads for tensor in given), final]


class FrozenStages:
    """The values that the first stages pass on, of examples by their numbers; these stages are in evaluation."""

    def __init__(self, model: ExitModel, examples: Examples, batch_size: int, stages: int) -> None:
        self._stages = model.stages[:stages]
        self._like: Values | None = None
        self._known = KnownRows(examples, self._computed, batch_size, model.place, once=not stages)

    def of(self, rows: Tensor) -> Values:
        """Returns the values of these rows, on the model's accelerator."""
        found = self._known.of(rows)
        assert self._like is not None
        if isinstance(self._like, Tensor):
            return found[0]
        own, shared = iter(found), self._like.shared
        return self._like.like([t if k in shared else next(own) for k, t in enumerate(self._like.tensors)])

    def _computed(self, inputs: Values) -> Sequence[Tensor]:
        values = inputs
        with evaluating(*(stage.module for stage in self._stages)):
            for stage in self._stages:
                values = stage.run(values)
        self._like = values
        shared = frozenset() if isinstance(values, Tensor) else values.shared
        return [tensor for place, tensor in enumerate(tensors_of(values)) if place not in shared]
