"""Applies Flower's own aggregation rules to devices instead of nodes.

Under fsl's Grids a node hosts many devices, so rules that Flower applies per reply (median, Krum, an adaptive server)
would act on nodes. Here they act on devices: on their fronts, and on their backs where each has one.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)
from flwr.serverapp.strategy.fedopt import FedOpt
from torch import Tensor

from fsl.errors import ConfigError, RunError
from fsl.flower.records import to_array
from fsl.segments.states import Field, Layout, State
from fsl.segments.sums import DeviceStates, Total, summed

_SERVER_OPTIMIZERS = (FedOpt, FedAvgM)  # they act on the mean over devices
_ROBUST = (FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan)  # they must see each device


class Aggregator:
    """One of Flower's strategies as a rule for combining what devices trained.

    FedAdam, FedYogi, FedAdagrad (Reddi et al. 2021) and FedAvgM (Hsu et al. 2019) get the devices' exact weighted mean
    and step the parameters; buffers such as BatchNorm's statistics are averaged. FedMedian, FedTrimmedAvg (Yin et al.
    2018), Krum, MultiKrum (Blanchard et al. 2017) and Bulyan get every device's front and back together. Integer
    counters keep the largest. Raises ConfigError for other strategies.
    """

    def __init__(self, strategy: Strategy):
        if not isinstance(strategy, (*_SERVER_OPTIMIZERS, *_ROBUST)):
            allowed = "FedAdam, FedYogi, FedAdagrad, FedAvgM, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan"
            raise ConfigError(
                f"aggregator={type(strategy).__name__}: it cannot be applied per device; allowed are {allowed}"
            )
        self.rule: FedAvg = copy.deepcopy(strategy)
        self.rule.fraction_train = 0.0  # fsl chooses the devices: the rule must sample none

    @property
    def one_by_one(self) -> bool:
        """True where the rule must see each device's state."""
        return not isinstance(self.rule, _SERVER_OPTIMIZERS)

    def refuse_too_few(self, devices: int) -> None:
        """Raise ConfigError where a round has fewer devices than the rule's guarantee asks for."""
        suspected = getattr(self.rule, "num_malicious_nodes", None)
        if suspected is None:
            return
        least = 4 * suspected + 3 if isinstance(self.rule, Bulyan) else 2 * suspected + 3
        if devices < least:
            raise ConfigError(
                f"aggregator={type(self.rule).__name__}: with num_malicious_nodes={suspected} it needs at least "
                f"{least} devices a round, and has {devices}; lower num_malicious_nodes, or take more devices"
            )

    def refuse_fewer(self, setting: str) -> None:
        """Raise ConfigError where a setting may leave a round fewer devices than the rule's guarantee asks for."""
        if setting and getattr(self.rule, "num_malicious_nodes", None) is not None:
            raise ConfigError(
                f"aggregator={type(self.rule).__name__} with {setting}: a round may have fewer devices than its "
                "guarantee asks for; leave that out, or use aggregator=median or trimmed_mean"
            )

    def settings(self) -> dict[str, Any]:
        """Returns the settings that the result depends on."""
        plain = {name: value for name, value in vars(self.rule).items() if isinstance(value, bool | int | float | str)}
        return {"class": type(self.rule).__name__, **plain}

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that the rule remembers from round to round, for a checkpoint."""
        named: dict[str, Tensor] = {}
        for name in ("m_t", "v_t", "momentum_vector"):
            held = getattr(self.rule, name, None) or {}
            items = held.items() if isinstance(held, dict) else enumerate(held)
            named |= {f"{name}/{key}": torch.from_numpy(np.array(value)) for key, value in items}
        return named

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from tensors that `tensors` returned."""
        held: dict[str, dict[str, np.ndarray]] = {}
        for name, tensor in tensors.items():
            kind, _, key = name.partition("/")
            held.setdefault(kind, {})[key] = tensor.numpy()
        for kind, values in held.items():
            in_order = [values[str(index)] for index in range(len(values))] if kind == "momentum_vector" else values
            setattr(self.rule, kind, in_order)

    def combine(
        self, round: int, totals: Mapping[str, Total], layouts: Mapping[str, Layout], previous: Mapping[str, State]
    ) -> dict[str, State]:
        """Returns each segment's new state, from its devices' work and the state that they started from.

        RunError where the rule cannot work with so few devices.
        """
        new = {name: summed(total).mean() for name, total in totals.items()}
        old = _record(layouts, previous, self._takes)
        messages = [_message(record, weight) for record, weight in self._replies(totals, layouts, new)]
        try:
            with _quiet():
                list(self.rule.configure_train(round, old, ConfigRecord(), cast(Grid, None)))
                arrays, _ = self.rule.aggregate_train(round, messages)
        except (AppExitException, ValueError, IndexError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"round {round}: {type(self.rule).__name__} of {len(messages)} devices: {reason}") from error
        if arrays is None:
            raise RunError(f"round {round}: {type(self.rule).__name__} of {len(messages)} devices gave no model")
        for name, state in new.items():
            for field, view in layouts[name].views(state):
                if self._takes(field):
                    view.copy_(torch.from_numpy(np.asarray(arrays[f"{name}.{field.name}"].numpy())).reshape(view.shape))
        return new

    def _takes(self, field: Field) -> bool:
        return field.dtype.is_floating_point and (self.one_by_one or field.trainable is not None)

    def _replies(
        self, totals: Mapping[str, Total], layouts: Mapping[str, Layout], means: Mapping[str, State]
    ) -> list[tuple[ArrayRecord, float]]:
        if not self.one_by_one:
            return [(_record(layouts, means, self._takes), 1.0)]
        by_device: dict[int, dict[str, State]] = {}
        weights: dict[int, float] = {}
        for name, total in totals.items():
            assert isinstance(total, DeviceStates)
            weights |= total.weights
            for device, state in total.states.items():
                by_device.setdefault(device, {})[name] = state
        return [(_record(layouts, by_device[d], self._takes), weights[d]) for d in sorted(by_device)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Flower's log of how many replies it got, which here are devices."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _record(layouts: Mapping[str, Layout], states: Mapping[str, State], takes: Any) -> ArrayRecord:
    return ArrayRecord(
        {
            f"{name}.{field.name}": to_array(view)
            for name, state in states.items()
            for field, view in layouts[name].views(state)
            if takes(field)
        }
    )


def _message(arrays: ArrayRecord, weight: float) -> Message:
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": weight})})
    return Message(content, 1, MessageType.TRAIN)
