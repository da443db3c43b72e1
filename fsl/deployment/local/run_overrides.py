"""Completes a run's overrides by what a local federation knows: members, and free ports of the loopback."""

from collections.abc import Sequence
from pathlib import Path

from fsl.deployment.local.local_plan import free_ports, serves_metrics
from fsl.quoting import override_value


def completed(overrides: Sequence[str], table: Path) -> tuple[list[str], str]:
    """Returns a run's overrides, and where its cloud's metrics are (host:port; empty where it serves none).

    `table`: the members, if there is such a file. What overrides name already stays.
    """
    given = {name.lstrip("+"): value for name, _, value in (text.partition("=") for text in overrides)}
    more = []
    if table.exists() and not given.keys() & {"deployment.members", "deployment.bind_keys"}:
        more += [f"deployment.members={override_value(str(table))}"]
    line, watch = (f"127.0.0.1:{port}" for port in free_ports(2))
    if not given.keys() & {"deployment.line", "deployment.line_listen"}:
        more += [f"deployment.line_listen={line}", f"deployment.line_address={line}"]
    metrics = given.get("deployment.metrics", "")
    if "deployment.metrics" not in given and serves_metrics():
        metrics = watch
        more += [f"deployment.metrics={metrics}"]
    return [*overrides, *more], "" if metrics == "null" else metrics
