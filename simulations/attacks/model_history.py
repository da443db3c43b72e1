"""Recovers a run's models round by round: trains the run again, and keeps its states."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.common import ArrayRecord, MetricRecord
from fsl.simulations.one_run import simulate_config
from fsl.strategies import SplitStrategy
from omegaconf import DictConfig
from torch import Tensor

from fsl.files import load_tensors
from fsl.round.node_store import Store
from fsl.run.run_folder import RunFolder


def states_by_round(
    config: DictConfig, strategy: SplitStrategy, device: int, private: bool, out: Path
) -> list[dict[str, Tensor]]:
    """Returns all segments' weights after each round that this device took part in; `private`: its own front.

    A simulation is repeatable to the bit, so these are what the run itself had.
    """
    kept: list[dict[str, Tensor]] = []
    folder, start = RunFolder(out), strategy.start

    def watched(*arguments: Any, on_round: Any, **options: Any) -> Any:
        def ended(round: int, arrays: ArrayRecord, metrics: MetricRecord) -> None:
            on_round(round, arrays, metrics)
            if device not in strategy.chosen(round):
                return
            tensors = _named(arrays)
            if private:
                store, newest = Store(folder.checkpoint / "devices"), strategy.kept()[device]
                for kind in ("fronts", "tails"):
                    if kind == "fronts" or store.path(f"{kind}/{device}", newest).exists():
                        found = store.load(f"{kind}/{device}", newest) or {}
                        tensors |= {name: tensor.clone() for name, tensor in found.items()}  # the run deletes the file
            if folder.frozen_path.exists():
                tensors |= load_tensors(folder.frozen_path)
            kept.append(tensors)

        return start(*arguments, on_round=ended, **options)

    strategy.start = watched  # type: ignore[method-assign, assignment]
    simulate_config(config, out, progress=False, strategy=strategy)
    return kept


def _named(arrays: ArrayRecord) -> dict[str, Tensor]:
    tensors: Mapping[str, Any] = {name.partition(".")[2]: array for name, array in arrays.items()}
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in tensors.items()}
