"""Lets an operator watch a run from its cloud, where the run's terms ask for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsl.deployment.cloud.roster import Roster
from fsl.deployment.extra_installed import needs_prometheus
from fsl.run.observers import Observer, RunInfo
from fsl.wire.line.cloud_lines import CloudLines

if TYPE_CHECKING:
    from fsl.deployment.cloud.cloud_metrics import CloudMetrics


class RunWatch(Observer):
    """Tells metrics of a run's rounds, once they are served."""

    def __init__(self) -> None:
        self.metrics: CloudMetrics | None = None

    def serve(self, address: str, run: str, folder: Path, roster: Roster, lines: CloudLines | None) -> None:
        """Serve a run's metrics at `address`; ConfigError where that is taken, or prometheus_client is missing."""

        def nodes() -> tuple[int, int]:
            online = {member.node for member in roster.members.online}
            return len(online), 0 if lines is None else len(online & lines.open)

        with needs_prometheus(f"deployment.metrics={address}"):
            from fsl.deployment.cloud.cloud_metrics import CloudMetrics
        self.metrics = CloudMetrics(address, run, folder, nodes)

    def on_start(self, info: RunInfo) -> None:
        """Tell what runs."""
        if self.metrics is not None:
            self.metrics.on_start(info)

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Tell a round's row."""
        if self.metrics is not None:
            self.metrics.on_round(row)

    def close(self) -> None:
        """Free the address."""
        if self.metrics is not None:
            self.metrics.close()
            self.metrics = None
