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
                for kind in ("fronts", "tails"):
                    path = folder.checkpoint / "devices" / kind / str(device) / f"{strategy.kept()[device]}.safetensors"
                    tensors |= load_tensors(path) if path.exists() or kind == "fronts" else {}
            kept.append(tensors)

        return start(*arguments, on_round=ended, **options)

    strategy.start = watched  # type: ignore[method-assign, assignment]
    simulate_config(config, out, progress=False, strategy=strategy)
    return kept


def _named(arrays: ArrayRecord) -> dict[str, Tensor]:
    tensors: Mapping[str, Any] = {name.partition(".")[2]: array for name, array in arrays.items()}
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in tensors.items()}
