"""Shows what runs in a federation: tables of processes and endpoints, and a line on the run at work."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fsl.deployment.local.local_federation import LocalFederation
from fsl.deployment.local.run_record import LocalRun
from fsl.deployment.local.scraped_metrics import Told, metrics_url, scrape
from fsl.errors import FslError
from fsl.run.observers import human_bytes
from fsl.run.run_folder import RunFolder

_AT_ONCE = 32  # endpoints asked at a time
_HEAD = ("round", "sessions", "steps", "up", "down", "lost")
# By part, the metric of each column of _HEAD.
_COLUMNS = {
    "edge": ("round", "sessions", "steps_total", "up_bytes_total", "down_bytes_total", "devices_lost_total"),
    "device": ("round", "attending", "steps_total", "up_bytes_total", "down_bytes_total", "lost_total"),
    "cloud": ("round", "", "", "up_bytes_total", "down_bytes_total", "devices_lost_total"),
}


def show_endpoints(given: Sequence[str]) -> bool:
    """Print what the endpoints at these addresses or URLs tell; returns whether all answered and are in good health."""
    urls = [metrics_url(one) for one in given]
    rows, lines, well = [], [], True
    for url, told in zip(urls, asked(urls)):
        if told is None or not told.role:
            why = "no answer" if told is None else "no fsl"
            rows.append((url, "", why, *[""] * len(_HEAD)))
            well = False
            continue
        healthy = bool(told.metrics.get("fsl_healthy"))
        well = well and healthy
        rows += [(url, part, "up" if healthy else "ill", *figures) for part, figures in parts_of(told)]
        if told.role == "cloud":
            lines.append(run_in_words(told))
    _print(("metrics", "role", "state", *_HEAD), rows)
    for line in lines:
        print(line)
    return well


def show_local(federation: LocalFederation) -> bool:
    """Print a local federation's processes and its run; returns whether all processes are alive."""
    alive = federation.alive()
    online = federation.online() if alive.get("superlink") else {}
    nodes = {node.name: node for node in federation.record.nodes}
    served = [node.metrics for node in nodes.values() if node.metrics and alive.get(node.name)]
    told = dict(zip(served, asked(served)))
    rows = []
    for name, process in federation.record.processes.items():
        node = nodes.get(name)
        found = told.get(node.metrics) if node and node.metrics else None
        figures = next((figures for _, figures in parts_of(found)), None) if found else None
        address = federation.record.superlink if node is None else node.address
        joined = "" if node is None else _yes(online.get(name, False))
        known = (name, node.role if node else name, str(process.pid), _yes(alive[name]), joined, address or "")
        rows.append((*known, *(figures or [""] * len(_HEAD)), (node.metrics if node else "") or ""))
    _print(("process", "role", "pid", "alive", "online", "address", *_HEAD, "metrics"), rows)
    print(_local_run(federation))
    return all(alive.values())


def asked(addresses: Sequence[str]) -> list[Told | None]:
    """Ask endpoints side by side; in order."""
    if not addresses:
        return []
    with ThreadPoolExecutor(min(_AT_ONCE, len(addresses))) as pool:
        return list(pool.map(scrape, addresses))


def parts_of(told: Told) -> Iterator[tuple[str, list[str]]]:
    """Yield each part of a process, such as "edge", with its columns of a table."""
    for part in ("edge", "device") if told.role == "both" else (told.role,):
        kind = "edge" if part == "top" else part  # it counts as the edge does that it is above
        names = [f"fsl_{kind}_{name}" for name in _COLUMNS.get(kind, ())]
        cells = [_cell(name, told.metrics[name]) if name in told.metrics else "" for name in names]
        if part == "cloud":
            cells[0] = f"{cells[0]}/{told.metrics.get('fsl_cloud_rounds', 0):.0f}"
        if part in ("edge", "top", "device") and not cells[-1]:
            cells[-1] = "0"  # a counter by reasons has no sample before the first
        yield part, cells


def run_in_words(told: Told) -> str:
    """Describe the run of a cloud in a line."""
    numbers = told.metrics
    done, rounds = numbers.get("fsl_cloud_round", 0), numbers.get("fsl_cloud_rounds", 0)
    nodes, lined = numbers.get("fsl_cloud_nodes_online", 0), numbers.get("fsl_cloud_nodes_with_line", 0)
    said = [f"run {told.run}: round {done:.0f} of {rounds:.0f}" if told.run else "a run that has not begun"]
    if seconds := numbers.get("fsl_cloud_last_round_seconds"):
        lost, ever = (numbers.get(f"fsl_cloud_{name}", 0) for name in ("last_round_devices_lost", "devices_lost_total"))
        said.append(f"the last in {seconds:.3g} s, devices lost: {lost:.0f} in it and {ever:.0f} so far")
    said.append(f"{lined:.0f} of {nodes:.0f} nodes have a line")
    return ", ".join(said)


def _local_run(federation: LocalFederation) -> str:
    last = federation.last_run()
    if last is None:
        return "no run was sent to it yet"
    told = scrape(last.metrics) if last.metrics else None
    if told is not None and told.role == "cloud" and told.run in ("", last.run):
        return f"at work: {run_in_words(told)}" if told.run else f"at work: run {last.run}, before its first round"
    what = f"at work: run {last.run}" if federation.at_work() else f"no run is at work; the last was {last.run}"
    return f"{what}{_by_its_folder(last)}"


def _by_its_folder(last: LocalRun) -> str:
    if not last.folder:
        return ""
    folder = RunFolder(Path(last.folder))
    try:
        rows = folder.read_metrics()
    except FslError:
        rows = []  # it is being written, or damaged
    if not rows:
        return f", without a round that ended ({last.folder})"
    row = rows[-1]
    seconds = "" if row.get("seconds") is None else f" in {row['seconds']:.3g} s"
    return f", its last round {row['round']}{seconds}, devices lost in it: {len(row.get('lost') or ())} ({last.folder})"


def _cell(name: str, value: float) -> str:
    return human_bytes(value) if "bytes" in name else f"{value:.0f}"


def _print(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    (Console() if sys.stdout.isatty() else Console(width=1000)).print(table)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
