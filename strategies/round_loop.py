"""Flower's round loop, with a first round to begin at and a call after each round."""

import time
from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
RoundFn = Callable[[int, ArrayRecord, MetricRecord], None]


class RoundLoop(Strategy):
    """A Flower strategy whose `start` can begin at any round, so that a run can resume."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        *,
        first_round: int = 1,
        on_round: RoundFn | None = None,
    ) -> Result:
        """Run Flower's round loop from `first_round`, and call `on_round(round, arrays, metrics)` after each round.

        It exchanges messages and replies like `Strategy.start`. `timeout`: seconds to wait for a round.
        """
        self.summary()
        train_config, evaluate_config = train_config or ConfigRecord(), evaluate_config or ConfigRecord()
        result = Result(arrays=initial_arrays)
        for current in range(first_round, num_rounds + 1):
            started = time.perf_counter()
            messages = list(self.configure_train(current, result.arrays, train_config, grid))
            replies = self._exchange(grid, messages, timeout)
            arrays, trained = self.aggregate_train(current, replies)
            result.arrays = result.arrays if arrays is None else arrays
            metrics = MetricRecord() if trained is None else trained
            result.train_metrics_clientapp[current] = metrics
            seconds = time.perf_counter() - started
            nothing_new = self._trained_nothing(metrics)
            if not nothing_new and (
                messages := list(self.configure_evaluate(current, result.arrays, evaluate_config, grid))
            ):
                scores = self.aggregate_evaluate(current, self._exchange(grid, messages, timeout))
                result.evaluate_metrics_clientapp[current] = scores or MetricRecord()
                metrics = MetricRecord({**metrics, **(scores or {})})
            if (
                not nothing_new
                and evaluate_fn is not None
                and (scores := evaluate_fn(current, result.arrays)) is not None
            ):
                result.evaluate_metrics_serverapp[current] = scores
                metrics = MetricRecord({**metrics, **scores})
            self._scored(metrics)
            if on_round is not None:
                on_round(current, result.arrays, MetricRecord({**metrics, "seconds": seconds}))
        return result

    def _exchange(self, grid: Grid, messages: list[Message], timeout: float) -> Iterable[Message]:
        """Send a round's messages, and wait for the replies."""
        return grid.send_and_receive(messages, timeout=timeout) if messages else []

    def _scored(self, metrics: MetricRecord) -> None:
        """Note a round's metrics, before its checkpoint is written."""

    def _trained_nothing(self, metrics: MetricRecord) -> bool:
        """Whether a round with these training metrics left the model as it was, so that it needs no evaluation."""
        return False
