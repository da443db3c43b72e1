"""Checkpoints: what `resume` needs to go on, bitwise as if the run had never stopped.

A checkpoint is complete when `state.json` names its round; the tensors of a round are written before, and those of
the round before are deleted after.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import load_tensors, save_tensors, write_json

_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run as of the end of a round. `tensors` are named `<segment>.<key>`."""

    round: int
    tensors: Mapping[str, Tensor]
    strategy: Mapping[str, Any]
    settings: Mapping[str, Any]  # what the result depends on
    best: Mapping[str, Any] | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then delete the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model.{checkpoint.round}.safetensors"
    save_tensors(path, checkpoint.tensors)
    state = {
        "format": _FORMAT,
        "round": checkpoint.round,
        "strategy": checkpoint.strategy,
        "best": checkpoint.best,
        "settings": checkpoint.settings,
    }
    write_json(folder / "state.json", state)
    for old in folder.glob("model.*.safetensors"):
        if old != path:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; CheckpointError in one line if there is none or it is damaged."""
    path = folder / "state.json"
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint in {folder.parent}: resume=<folder> takes the folder of a run that finished at "
            "least one round"
        )
    try:
        state = json.loads(path.read_text())
        if state["format"] != _FORMAT:
            raise CheckpointError(f"{path} has format {state['format']}; this version of fsl reads format {_FORMAT}")
        round, strategy, settings, best = (state[key] for key in ("round", "strategy", "settings", "best"))
        if not isinstance(round, int) or not isinstance(strategy, dict) or not isinstance(settings, dict):
            raise TypeError("a field has the wrong type")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or start a new run without resume") from None
    return Checkpoint(round, load_tensors(folder / f"model.{round}.safetensors"), strategy, settings, best)


def refuse_other_settings(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """A run goes on only with the settings it began with; names the first that differs."""
    now = json.loads(json.dumps(now))
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            raise CheckpointError(
                f"resume={folder}: that run has {key}={then.get(key)!r}, this one {now.get(key)!r}; resume with equal "
                "settings (only nodes and backend may differ), or start a new run"
            )
