"""A run's folder: what lies where, and how it is written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fsl.errors import CheckpointError, ConfigError
from fsl.files import load_tensors, naming, to_json, write_json, write_text
from fsl.quoting import override_value, shell_word


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.summary_path = path / "summary.json"
        self.model_path = path / "model.safetensors"
        self.adapter_path = path / "adapter"  # of a model with LoRA
        self.best_path = path / "best.safetensors"
        self.back_path = path / "back.safetensors"
        self.head_path = path / "head.safetensors"
        self.federation_config = path / "federation.yaml"
        self.fronts = path / "fronts"
        self.figures = path / "figures"
        self.profile = path / "profile"
        self.checkpoint = path / "checkpoint"
        self.frozen_path = self.checkpoint / "frozen.safetensors"

    @property
    def is_used(self) -> bool:
        """Whether there is a run in it already."""
        return self.metrics_path.exists() or self.checkpoint.exists()

    def refuse_if_used(self) -> None:
        """Make the folder for a new run; ConfigError if it holds one already, since results are never overwritten."""
        if self.is_used:
            raise ConfigError(
                f"{self.path} holds a run already; go on with it "
                f"({shell_word(f'resume={override_value(str(self.path))}')}), or choose another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be made a folder ({error.strerror}); choose another") from None

    def trace_path(self, first_round: int = 1) -> Path:
        """Where the trace of a profiled run lies, or that of a part which went on with this round."""
        return self.profile / f"trace{_from(first_round)}.json"

    def profile_path(self, first_round: int = 1) -> Path:
        """Where it says what took the time of a profiled run, or of a part which went on with this round."""
        return self.profile / f"summary{_from(first_round)}.json"

    def newest_profile(self) -> Path:
        """The newest of these: that of a run that went on is of its last part."""
        found = sorted(self.profile.glob("summary*.json"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1] if found else self.profile_path()

    def front_path(self, device: int) -> Path:
        """Where a device's private front lies, with its tail where there is one."""
        return self.fronts / f"{device}.safetensors"

    def front_owners(self) -> tuple[int, ...]:
        """The devices that have a private front here, in order."""
        return tuple(sorted(int(path.stem) for path in self.fronts.glob("*.safetensors") if path.stem.isdecimal()))

    def front(self, device: int) -> dict[str, Tensor]:
        """A device's private front; ConfigError if it has none."""
        if not self.front_path(device).exists():
            raise ConfigError(f"device {device} has no private front in {self.path}: it never trained")
        return load_tensors(self.front_path(device))

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Add a round's row to metrics.jsonl; a line that a kill or a full disk had cut off goes first."""
        if self._is_cut():
            self._write_metrics(self.read_metrics())
        with naming(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows, without a last line that was cut off; CheckpointError for any other line that is no row."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_bytes().split(b"\n")
        rows = [self._row(number, line) for number, line in enumerate(lines[:-1], start=1)]
        try:
            # Whole but for its newline, as an editor may leave it; a prefix of a JSON object is never JSON.
            return [*rows, self._row(len(lines), lines[-1])]
        except CheckpointError:
            return rows

    def truncate_metrics(self, round: int) -> None:
        """Keep the rows up to this round, for a run that goes on from its checkpoint."""
        self._write_metrics([row for row in self.read_metrics() if row["round"] <= round])

    def read_summary(self) -> dict[str, Any]:
        """What summary.json says; nothing where there is none; CheckpointError where it is damaged."""
        if not self.summary_path.exists():
            return {}
        try:
            value = json.loads(self.summary_path.read_text(encoding="utf-8"))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.summary_path} is damaged: it is no JSON object; restore or delete it")
        return value

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.summary_path, summary)

    def _write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.metrics_path, "".join(to_json(row) + "\n" for row in rows))

    def _is_cut(self) -> bool:
        if not self.metrics_path.exists() or self.metrics_path.stat().st_size == 0:
            return False
        with self.metrics_path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("round"), int):
            raise CheckpointError(
                f"line {number} of {self.metrics_path} is damaged: it is no JSON object with a round; restore or "
                "delete it"
            )
        return row


def _from(first_round: int) -> str:
    return "" if first_round == 1 else f"-from-round-{first_round}"
