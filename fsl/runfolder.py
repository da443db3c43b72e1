"""A run's folder: what lies where, and how it is written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsl.errors import ConfigError
from fsl.files import to_json, write_json, write_text


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.summary_path = path / "summary.json"
        self.model_path = path / "model.safetensors"
        self.best_path = path / "best.safetensors"
        self.back_path = path / "back.safetensors"
        self.fronts = path / "fronts"
        self.figures = path / "figures"
        self.checkpoint = path / "checkpoint"

    def refuse_if_used(self) -> None:
        """Another run's results are never overwritten."""
        if self.metrics_path.exists() or self.checkpoint.exists():
            raise ConfigError(
                f"{self.path} holds a run already; go on with it (resume={self.path}), or choose another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a round's row to metrics.jsonl."""
        with self.metrics_path.open("a") as file:
            file.write(to_json(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line that was cut off by a kill is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def truncate_metrics(self, round: int) -> None:
        """Keep the rows up to this round."""
        rows = [row for row in self.read_metrics() if row["round"] <= round]
        write_text(self.metrics_path, "".join(to_json(row) + "\n" for row in rows))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.summary_path, summary)
