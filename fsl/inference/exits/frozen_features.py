"""What a frozen backbone gives to its exits' heads, computed once where that can be kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsl.data import Examples
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_stages import fuses, inputs_of
from fsl.segments.calling import outputs_of
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values

KEPT = 1 << 30  # bytes


@dataclass(frozen=True)
class FeatureRows:
    """Of some rows: what each exit's head takes, what each predictor would, and the final exit's outputs."""

    heads: list[tuple[Tensor, ...]]
    leading: list[Tensor]
    final: Tensor


class FrozenFeatures:
    """The values at each exit, and the final outputs, of examples by their numbers; the backbone is in evaluation.

    They are kept in memory where examples do not change and all of it takes at most `KEPT` bytes, and else, or for who
    reads them but `once`, computed for each batch.
    """

    def __init__(
        self, model: ExitModel, examples: Examples, batch_size: int, *, predictors: bool = False, once: bool = False
    ) -> None:
        self._model, self._examples, self._predictors = model, examples, predictors
        self._kept: list[Tensor] | None = None
        if once or examples.draws or examples.trimmed or not len(examples):
            return
        first = self._computed(torch.arange(min(len(examples), batch_size)))
        if sum(tensor.nbytes for tensor in _flat(first)) / len(first.final) * len(examples) > KEPT:
            return
        parts = [_flat(self._computed(rows)) for rows in torch.arange(len(examples)).split(batch_size)]
        self._kept = [torch.cat(some) for some in zip(*parts, strict=True)]
        self._counts = [len(inputs) for inputs in first.heads], len(first.leading)

    def of(self, rows: Tensor) -> FeatureRows:
        """Returns those of these rows, on the model's accelerator; none of them takes part in a backward pass."""
        if self._kept is None:
            return self._computed(rows, keep=False)
        place = self._model.place
        found = iter([tensor[rows].to(place) for tensor in self._kept])
        counts, leading = self._counts
        heads = [tuple(next(found) for _ in range(count)) for count in counts]
        return FeatureRows(heads, [next(found) for _ in range(leading)], next(found))

    @torch.no_grad()
    def _computed(self, rows: Tensor, keep: bool = True) -> FeatureRows:
        model = self._model
        values: Values = self._examples.batch(rows)[0].to(model.place)
        heads: list[tuple[Tensor, ...]] = []
        leading: list[Tensor] = []
        with evaluating(model.backbone, *(stage.module for stage in model.stages)):
            for stage, head in zip(model.stages, model.heads, strict=False):
                values = stage.run(values)
                heads.append(tuple(tensor.clone() for tensor in inputs_of(values, fuses(head))))
                if self._predictors:
                    leading.append(inputs_of(values, False)[0].clone())
            final = outputs_of(model.stages[-1].module, values)
        found = FeatureRows(heads, leading, final)
        return found if not keep else _on_cpu(found)


def _flat(rows: FeatureRows) -> Sequence[Tensor]:
    return [*(tensor for inputs in rows.heads for tensor in inputs), *rows.leading, rows.final]


def _on_cpu(rows: FeatureRows) -> FeatureRows:
    heads = [tuple(tensor.cpu() for tensor in inputs) for inputs in rows.heads]
    return FeatureRows(heads, [tensor.cpu() for tensor in rows.leading], rows.final.cpu())
