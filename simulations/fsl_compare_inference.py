"""`fsl-compare-inference`: a trained model at work between a device and an edge, by every policy side by side."""

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fsl.simulations.comparing.compare_figure import draw_comparison
from fsl.simulations.comparing.compare_options import CompareOptions, read_options
from fsl.simulations.comparing.compare_tables import common_of_rows, compare_csv, compare_table
from fsl.simulations.comparing.compared_exits import compared_exits
from fsl.simulations.comparing.compared_streams import compared
from fsl.simulations.comparing.contender import Contender, bottleneck_names, contender, refuse_unlike
from fsl.simulations.console import print_table
from fsl.simulations.console_scripts import run_command, run_script
from fsl.simulations.endings import tell
from fsl.simulations.reports.common_figure import common_csv, draw_common
from fsl.simulations.reports.tables import markdown_of

from fsl.files import write_json, write_text
from fsl.run.plotting import save_figure

_USAGE = """usage: fsl-compare-inference run=FOLDER [option=value ...]

Send the same requests to a finished run's model by every policy: on the device, at the edge (the input as it is, as
JPEG or WebP), divided at one point or anew as the link changes, with codecs, trained bottlenecks and early exits. Tells
accuracy on the run's test rows, bytes, latency, energy and the weights on the device, and draws them.

  run=FOLDER           a finished run of fsl-simulate; front=3: with this device's own front
  int8=true            its front runs in int8 (lean_front=int8, or calibrated on its data); int8=7: by 7 bits
  points=NAME,NAME     only these cuts, and both extremes; default: every cut that can be made
  codecs=int8,int4     codecs at cuts
  bottlenecks=FOLDER,...  finished runs with a trained codec (codec.up=bottleneck, units), each at its own cut
  exits=FOLDER         exits that save_exits wrote for this run's model; threshold=0.9: confidence to leave
  images=jpeg:75,...   formats of the input for a remote model; images=none for none
  rates=1,10,lte       Mbit/s, or traces: wifi, lte, 5g (synthetic), or a file.csv of second,Mbit/s
  loads=0,0.5          shares of the edge's speed that others take; servers=1: requests that it serves at once
  per_second=1         requests come so often, independently; requests=300 of them, drawn by seed=0
  deadline=0.5         seconds within which an answer is in time
  device=pi4           whose power gives energy; link=lte: latency, and a radio's power
  edge_speed=10        assume an edge so many times as fast as this machine; device_speed=0.1: a device
  rows=1000            test rows that answers are scored on (validation or training rows where there are no others)
  repetitions=30       of the profile, with threads=1 of torch
  out=FOLDER           of comparison.csv, .md and .png, and of fsl's common metrics: common.csv, .json and .png"""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code of `run_command`."""
    return run_command("fsl-compare-inference", _USAGE, arguments, lambda given: _run(read_options(given)))


def _run(options: CompareOptions) -> None:
    main = contender(options.run, options, bottleneck=False)
    names = bottleneck_names(options.bottlenecks)
    others = []
    for folder, name in names.items():
        others.append(contender(folder, options, name, bottleneck=True))
        refuse_unlike(main, others[-1], folder)
    exits = compared_exits(main, options)
    quality = "loss" if main.unsplit.score.accuracy is None else "accuracy"
    for line in _about(options, main):
        tell(line)
    rows = list(compared(options, main, others, exits))
    tables = [compare_table(rows, link, load, quality) for link in options.links for load in options.loads]
    for table in tables:
        print_table(table, "", "in comparison.csv")
    figure = draw_comparison(rows, quality)
    out = options.out or Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}-inference"
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.csv", compare_csv(rows))
    write_text(out / "comparison.md", "\n\n".join([*_about(options, main), *map(markdown_of, tables)]) + "\n")
    save_figure(figure, out / "comparison.png")
    common = common_of_rows(rows, has_accuracy=quality == "accuracy")
    write_text(out / "common.csv", common_csv(common, "policy"))
    write_json(out / "common.json", {label: values.to_json() for label, values in common.items()})
    if (drawn := draw_common(common_of_rows(rows, quality == "accuracy", first=True), "Common metrics")) is not None:
        save_figure(drawn, out / "common.png")
    tell(f"tables, CSV and figure: {os.path.relpath(out)}")


def _about(options: CompareOptions, main: Contender) -> list[str]:
    speeds = {"device": options.device_speed, "edge": options.edge_speed}
    who = "; ".join(f"{name}: {_speed(times)}" for name, times in speeds.items())
    scored, cuts = f"{len(main.examples)} {main.rows}", len(main.points.cuts)
    return [
        f"{type(main.points.model).__name__} of {options.run}, {cuts} cuts; answers of {scored}, each a request",
        f"{who}. Round trip {1e3 * options.rtt_seconds:g} ms; {options.requests} requests, {options.per_second:g} a "
        f"second; deadline {1e3 * options.deadline:g} ms",
        "Bytes are those of payloads, without headers; latency is simulated from measured profiles",
    ]


def _speed(times: float) -> str:
    return "this machine" if times == 1 else f"assumed {times:g} times as fast"


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
