"""A model with early exits at points where it can be divided."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.inference.exits.confidences import CONFIDENCES, Confidence, confidence_of
from fsl.inference.exits.exit_cuts import ExitCuts
from fsl.inference.exits.exit_predictor import probabilities_of
from fsl.inference.exits.exit_stages import ExitStage, fuses, inputs_of
from fsl.inference.exits.exit_thresholds import Given, Thresholds
from fsl.inference.exits.exit_walk import ExitCosts, ExitPath, ExitResult, Onward, PartialResult, start_of, walk
from fsl.inference.exits.head_fitting import fitted_heads, unchanged
from fsl.inference.exits.onward_checks import Passing, check_onward
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints
from fsl.segments.calling import outputs_of
from fsl.segments.modes import evaluating, training_modes
from fsl.segments.tensor_trees import Values, as_values


class ExitModel(nn.Module):
    """A model, and early exits behind some of its modules; the model's parameters are shared, never copied.

    `exits`: by the name of a point where the model can be divided (`SplitPoints`), a head: "linear", "mlp", "conv",
    "sl_vit" or "fusion", one of these with its sizes (`ConvExit(width=64)`), or a module that makes outputs of the
    leading activation there (with an attribute `fuses = True`: of all activations). `example`: at least three rows as
    the model takes them; multiply-adds are those of its rows. `confidence`: "max_softmax", "entropy" (1 - H / log K),
    "none" (of numbers), or a function from outputs to (B,). New heads are drawn from `seed`. The model is put into
    evaluation mode.

    `costs` has the multiply-adds of a sample, by stage, head and predictor.

    SplitError for a point that cannot be, ConfigError for a head that does not fit there.
    """

    @checks_types(leave=("exits", "example", "confidence"))
    def __init__(
        self,
        backbone: nn.Module,
        exits: Mapping[str, Any],
        example: Values | Any,
        *,
        confidence: str | Confidence = "max_softmax",
        seed: int = 0,
    ):
        super().__init__()
        if not isinstance(exits, Mapping) or not exits or {INPUT, OUTPUT} & set(exits):
            raise ConfigError(f"exits={exits!r}: give heads by the names of points, as {{'block1': 'conv'}}")
        own = [given for given in exits.values() if isinstance(given, nn.Module)]
        self.training_modes = tuple(mode for one in (backbone, *own) for mode in training_modes(one))
        self._cuts = ExitCuts(backbone, example, list(exits))
        self.exits = self._cuts.exits
        self.backbone = backbone
        self.confidence_name = confidence if isinstance(confidence, str) else None
        self.sureness = confidence_of(confidence)
        self.bounded = self.sureness in CONFIDENCES.values()  # by 1
        self.predictors = nn.ModuleList()
        self._digest: tuple[list[tuple[int, int, int]], str] | None = None
        with torch.no_grad(), seeds.left_as_found():
            self.outputs_shape = tuple(outputs_of(backbone, self.example).shape[1:])
            made = fitted_heads(self.stages[:-1], exits, self.example, self.outputs_shape, seed)
        self.specs = tuple(spec for spec, _ in made)
        self.heads = nn.ModuleList(head for _, head in made)
        self.eval()
        self.costs = self._measured()

    @property
    def points(self) -> SplitPoints:
        """The model divided at each exit alone."""
        return self._cuts.points

    @property
    def stages(self) -> tuple[ExitStage, ...]:
        """The parts of the model between its exits, one more than there are exits."""
        return self._cuts.stages(self.training)

    @property
    def place(self) -> torch.device:
        """The accelerator on which it computes."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def example(self) -> Values:
        """The example's rows, where and in the precision in which the model computes."""
        return self._cuts.example_for(self)

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        """Returns the outputs of every exit, then the model's own, of a batch; all of it is computed."""
        values, found = _values(inputs), []
        for stage, head in zip(self.stages, self.heads, strict=False):
            values = stage.run(values)
            inputs = inputs_of(values, fuses(head))
            if torch.is_grad_enabled() or head.training:  # stages and, in training, heads may work in place
                inputs = tuple(tensor.clone() for tensor in inputs)
            found.append(head(*inputs))
        return (*found, outputs_of(self.stages[-1].module, values))

    def infer(self, batch: Any, thresholds: Given) -> ExitResult:
        """Returns each row's outputs from the first exit that is sure enough of it, or the model's own.

        `thresholds`: one confidence for all exits, one for each in the order of a forward pass or by name, or
        `Thresholds`. What a row skips is not computed, also within a batch.
        """
        found, values = self._thresholds(thresholds), _values(batch)
        with self._evaluating():
            return walk(self._path(), start_of(values), found).left

    def infer_until(self, point: str, batch: Any, thresholds: Given) -> PartialResult:
        """Returns what a device has that ends with the exit at `point`: rows that left, and what goes on."""
        if point not in self.exits:
            raise ConfigError(f"point={point!r}: it must be one of the exits {', '.join(self.exits)}")
        found, values = self._thresholds(thresholds), _values(batch)
        with self._evaluating():
            gave = walk(self._path(), start_of(values), found, self.exits.index(point))
        if gave.onward is None:
            return gave
        return replace(gave, onward=replace(gave.onward, digest=self._present_digest()))

    def infer_from(self, onward: Onward, thresholds: Given) -> ExitResult:
        """Returns the outputs of rows that went on, in the order of `onward.rows`, as an edge computes them.

        ConfigError for what no device with the same model, weights and exits passes at one of its exits.
        """
        found = self._thresholds(thresholds)
        check_onward(onward, self._present_digest(), self.exits, self._passing())
        with self._evaluating():
            return walk(self._path(), onward, found).left

    def outputs_at(self, point: str, batch: Any) -> Tensor:
        """Returns the outputs of the exit at `point`, or at "output" the model's own, and computes no other exit."""
        if point == OUTPUT:
            with torch.no_grad(), evaluating(self.backbone):
                return outputs_of(self.backbone, _values(batch))
        here = [-torch.inf if name == point else torch.inf for name in self.exits]
        return self.infer_until(point, batch, here).left.outputs

    def digest(self) -> str:
        """Returns a digest of the whole: of the backbone, the points, and every weight of heads and predictors."""
        found = hashlib.sha256(f"{self.points.digest()} {self.exits} {self.confidence_name}".encode())
        for name, tensor in sorted((*self.heads.state_dict().items(), *self.predictors.state_dict().items())):
            found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def put_predictors(self, predictors: Sequence[nn.Module]) -> None:
        """Give the exits predictors, one each: modules from the leading activation to a probability (B,) to leave.

        ConfigError for another number of them, and for one that gives something else.
        """
        if len(predictors) != len(self.exits):
            raise ConfigError(f"predictors: {len(predictors)} are given; give one for each of {', '.join(self.exits)}")
        values = self.example
        with torch.no_grad(), evaluating(self, *predictors), seeds.left_as_found():
            for stage, predictor in zip(self.stages, predictors, strict=False):
                values = stage.run(values)
                with unchanged(values, f"the predictor at {stage.name!r}"):
                    probabilities_of(predictor, inputs_of(values, False)[0], stage.name)
        self.predictors = nn.ModuleList(predictors)
        self.costs = self._measured()

    def train(self, mode: bool = True) -> "ExitModel":
        """Set the mode of the model, its exits and the parts that it was cut into."""
        super().train(mode)
        self._cuts.set_mode(mode)
        return self

    def _present_digest(self) -> str:
        """Returns the digest, computed anew where a tensor has changed since."""
        tensors = [*self.parameters(), *self.buffers()]
        if any(tensor.is_inference() for tensor in tensors):  # torch does not count changes of these
            return self.digest()
        state = [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in tensors]
        if self._digest is None or self._digest[0] != state:
            self._digest = state, self.digest()
        return self._digest[1]

    def _passing(self) -> list[Passing]:
        values, found = self.example, []
        with torch.no_grad(), self._evaluating():
            for stage in self.stages[:-1]:
                values = stage.run(values)
                found.append(Passing.of(values))
        return found

    def _evaluating(self) -> Any:
        return evaluating(self, *(stage.module for stage in self.stages))

    def _path(self) -> ExitPath:
        return ExitPath(
            stages=self.stages,
            heads=list(self.heads),
            predictors=list(self.predictors),
            costs=self.costs,
            outputs=self.outputs_shape,
            confidence=self.sureness,
            bounded=self.bounded,
        )

    def _thresholds(self, given: Given) -> Thresholds:
        found = Thresholds.of(given, self.exits)
        if any(found.eta) and not len(self.predictors):
            raise ConfigError(f"eta={found.eta}: the exits have no predictors; train_predictors gives them some")
        return found

    def _measured(self) -> ExitCosts:
        values, stages, heads, predictors = self.example, [], [], []
        rows = len(values)
        with torch.no_grad(), self._evaluating():
            for k, stage in enumerate(self.stages[:-1]):
                stages.append(macs_of(lambda: stage.run(values), rows))  # noqa: B023 - called at once
                values = stage.run(values)
                given = inputs_of(values, fuses(self.heads[k]))
                heads.append(macs_of(lambda: self.heads[k](*given), rows))  # noqa: B023
                if len(self.predictors):
                    leading = inputs_of(values, False)[0]
                    predictors.append(macs_of(lambda: self.predictors[k](leading), rows))  # noqa: B023
            stages.append(macs_of(lambda: outputs_of(self.stages[-1].module, values), rows))
        return ExitCosts(tuple(stages), tuple(heads), tuple(predictors))


def _values(batch: Any) -> Values:
    values = as_values(batch)
    if values is None or not len(values):
        raise ConfigError("batch: it has no rows; give at least one")
    return values
