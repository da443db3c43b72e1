"""Folders of runs with known numbers, for tests of the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SGLR = "fsl.strategies.sglr.SGLR"
V1 = "fsl.strategies.splitfed.SplitFedV1"


def settings(strategy: str = V1, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Settings as a summary has them; `strategy__phi=0.5` is "strategy.phi"."""
    own = {key.replace("__", "."): value for key, value in more.items()}
    return {
        "seed": seed,
        "devices": 4,
        "up": "fsl.codecs.Identity",
        "down": "fsl.codecs.Identity",
        "optimizer.target": "torch.optim.SGD",
        "optimizer.lr": 0.05,
        "optimizer.options": {"momentum": 0.9},
        "optimizer.schedule": {"milestones": [], "gamma": 0.1, "cosine": False},
        "strategy": strategy,
        "model": "MLP",
        "model.tensors": "23bdf1569376242b",
        "data": "digits",
        "data.examples": 1442,
        "partition": "fsl.data.partitioners.IID {} None",
        **own,
    }


def rows(accuracies: Sequence[float | None], **more: Any) -> list[dict[str, Any]]:
    """Rows of metrics with these accuracies, 100 bytes and 2 s a round."""
    return [
        {
            "round": round,
            "train_loss": 1.0,
            "loss": None if accuracy is None else 1 - accuracy,
            "accuracy": accuracy,
            "examples": 8,
            "up_bytes": 50,
            "down_bytes": 40,
            "model_bytes": 10,
            "seconds": 2.0,
            "sim_seconds": None,
            **more,
        }
        for round, accuracy in enumerate(accuracies, start=1)
    ]


def write_run(
    folder: Path,
    accuracies: Sequence[float | None],
    chosen: Mapping[str, Any] | None = None,
    finished: bool = True,
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A run's folder, as the simulator leaves it: with a summary, or with a checkpoint alone.

    `summary`: what its summary says besides.
    """
    folder.mkdir(parents=True)
    lines = rows(accuracies, **more)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    chosen = settings() if chosen is None else chosen
    if finished:
        told = {"final": {"round": len(lines)}, "settings": chosen, "classes": 10, "command": "/x/run.py seed=1"}
        (folder / "summary.json").write_text(json.dumps({**told, **(summary or {})}))
    else:
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "state.json").write_text(json.dumps({"settings": chosen}))
    if config is not None:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"rounds={config.get('rounds')}"]))
    return folder


def blank_figures(monkeypatch) -> None:
    """Let a report make its figures and leave them blank: to draw them is nine tenths of its seconds."""
    monkeypatch.setattr("fsl.simulations.fsl_report.to_bytes", lambda figure, form: b"<svg/>")
