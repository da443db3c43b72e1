"""Predicts the seconds of layers from what they are, by a regression for each kind, and tells its error honestly."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.profiles.layer_timing import Layer, TimedModel

_FEW = 8  # layers of a kind, below which all kinds together are fitted in its place


@dataclass(frozen=True)
class PredictionError:
    """Errors of predicted seconds, as shares of the measured ones: of layers (median, p90), and of a whole model.

    `of_sum`: of all layers together; `of_whole`: of a pass over the model, with what it does between its layers. Both
    have a sign: below 0 it took longer than predicted.
    """

    median: float
    p90: float
    of_sum: float
    of_whole: float


class LatencyPredictor:
    """Seconds of a layer as a sum of shares for the call, multiply-adds, parameters, elements in and elements out.

    The shares are not negative, and of each kind of layer its own; they are those of least squares of relative errors.
    A kind of which there were few layers is predicted as a layer of any kind. A predictor knows one machine, with the
    threads and the batch of what it was fitted on.
    """

    @checks_types()
    def __init__(self, models: Sequence[TimedModel]):
        """Fit to timed models; ConfigError where they have no layers."""
        by_kind: dict[str, list[tuple[Layer, float]]] = defaultdict(list)
        every = [pair for model in models for pair in zip(model.layers, model.seconds, strict=True)]
        if not every:
            raise ConfigError("models: give at least one with timed layers")
        for layer, seconds in every:
            by_kind[layer.kind].append((layer, seconds))
        self._any = _fitted(every)
        self._shares = {kind: _fitted(pairs) for kind, pairs in by_kind.items() if len(pairs) >= _FEW}

    @checks_types()
    def seconds(self, layers: Sequence[Layer]) -> np.ndarray:
        """Returns the predicted seconds of each layer (N,) float64."""
        shares = np.array([self._shares.get(layer.kind, self._any) for layer in layers]).reshape(len(layers), 5)
        return (_features(layers) * shares).sum(1)

    @checks_types()
    def error(self, model: TimedModel) -> PredictionError:
        """Returns the errors on a model; only one that the predictor was not fitted on tells of other models.

        ConfigError for a model without timed layers.
        """
        if not model.layers:
            raise ConfigError("model: it has no timed layers, of which errors could be told")
        predicted, measured = self.seconds(model.layers), np.array(model.seconds)
        relative, total = np.abs(predicted - measured) / measured, predicted.sum()
        return PredictionError(
            median=float(np.median(relative)),
            p90=float(np.percentile(relative, 90)),
            of_sum=float(total / measured.sum() - 1),
            of_whole=float(total / model.whole - 1),
        )


@checks_types()
def held_out_errors(models: Mapping[str, TimedModel]) -> dict[str, PredictionError]:
    """Returns for each model the errors of a predictor that was fitted on all the others; ConfigError for one alone."""
    if len(models) < 2:
        raise ConfigError(f"models={list(models)}: give at least two, so that one can be held out")
    others = {name: [model for other, model in models.items() if other != name] for name in models}
    return {name: LatencyPredictor(others[name]).error(model) for name, model in models.items()}


def _features(layers: Sequence[Layer]) -> np.ndarray:
    rows = [(1, one.macs, one.parameters, one.input_elements, one.output_elements) for one in layers]
    return np.array(rows, dtype=np.float64).reshape(len(layers), 5)


def _fitted(pairs: Sequence[tuple[Layer, float]]) -> np.ndarray:
    """Returns the shares (5,) of least squares of relative errors."""
    seconds = np.array([one for _, one in pairs])
    relative = _features([layer for layer, _ in pairs]) / seconds[:, None]
    scale = np.abs(relative).max(0)
    scale[scale == 0] = 1.0
    found, _ = nnls(relative / scale, np.ones(len(pairs)))
    return found / scale
