"""A finished run's final figures as a table of HTML, which notebooks show."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsl.run.notebooks import time_in_words
from fsl.run.observers import human_bytes


def run_as_html(rows: Sequence[Mapping[str, Any]], folder: Path | None) -> str:
    """Returns a run's final figures as a table: what was not measured is left out."""
    last = rows[-1] if rows else {}
    lines = [("rounds", str(len(rows)))]
    lines += [("devices in the last round", f"{last['devices']:,}")] if last.get("devices") is not None else []
    for key, name in (("train_loss", "training loss"), ("loss", "loss"), ("accuracy", "accuracy")):
        if last.get(key) is not None:
            spread = f" ± {100 * last['accuracy_std']:.1f}" if key == "accuracy" and last.get("accuracy_std") else ""
            shown = f"{100 * last[key]:.1f}{spread} %" if key == "accuracy" else f"{last[key]:.4f}"
            lines.append((name, shown))
    for key, name in (("up_bytes", "sent up"), ("down_bytes", "sent down"), ("model_bytes", "model states")):
        if total := _sum(rows, key):
            lines.append((name, human_bytes(total)))
    for key, name in (("seconds", "time"), ("sim_seconds", "simulated time")):
        if total := _sum(rows, key):
            lines.append((name, time_in_words(total)))
    if folder is not None:
        lines.append(("folder", str(folder)))
    cells = "".join(
        f'<tr><th style="text-align: left">{name}</th><td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in lines
    )
    return f"<table>{cells}</table>"


def _sum(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [row.get(key) for row in rows]
    return None if not values or None in values else sum(value for value in values if value is not None)
