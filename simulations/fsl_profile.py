"""`fsl-profile`: what a model costs at each point where it can be divided, and which point is best at which rate."""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from fsl.simulations.console import print_table
from fsl.simulations.console_scripts import run_command, run_script
from fsl.simulations.endings import tell
from fsl.simulations.image_formats import RAW, USUAL_IMAGES, read_format
from fsl.simulations.profiling.asked_profiles import asked
from fsl.simulations.profiling.profile_figure import draw_profile
from fsl.simulations.profiling.profile_options import ProfileOptions, read_options
from fsl.simulations.profiling.profile_tables import (
    about_lines,
    bottleneck_line,
    profile_csv,
    profile_table,
    rates_csv,
    rates_table,
)
from fsl.simulations.profiling.profiled_model import ProfiledModel, of_configuration, of_run
from fsl.simulations.profiling.rate_comparison import compare
from fsl.simulations.sweeps.search_trial import composed

from fsl.costs import DeviceProfile, LinkProfile
from fsl.data import TaskData
from fsl.errors import ConfigError
from fsl.files import write_text
from fsl.importing.building import build_kind
from fsl.inference.planning import DevicePower, SplitCosts
from fsl.inference.profiles import (
    Encoding,
    ModelProfile,
    image_encoding,
    measure,
    raw_image_encoding,
    read_profile,
)
from fsl.run.config import RunConfig, read_config
from fsl.run.plotting import save_figure

_USAGE = """usage: fsl-profile [overrides of fsl-simulate] [option=value ...]

Measure on this machine what a model costs at each point where a device can stop and an edge go on, and say which point
is answered soonest at which rate. The model is that of the overrides (model=resnet8 data=cifar10 ...) or of a run.

  run=FOLDER           the model of a finished run of fsl-simulate; front=3: with this device's own front
  int8=true            of a run: its front runs in int8 (lean_front=int8, or calibrated on its data); int8=7: by 7 bits
  points=NAME,NAME     only these cuts, and both extremes; default: every cut that can be made
  batch=1              samples of a request; default: 1, or as in a profile that is given
  repetitions=50       that are measured, after warm_up=5 others; threads=1: of torch
  checks=3             cuts whose head and tail are really run, to be compared with what one pass tells
  device=pi4           which device this machine is: its power then gives energy (not with device_speed=)
  link=lte             latency, and a radio's power; rates are those of rates=
  rates=1,10,100       Mbit/s, both ways
  images=jpeg:75,...   formats of the input that are sent to a remote model, where the data are images; images= for none
  edge_speed=10        assume an edge so many times as fast as this machine; device_speed=0.1: a device
  profile=FILE         the device's profile.json, which fsl-profile wrote there: this machine is then the edge
  edge_profile=FILE    the edge's: this machine is then the device; with both, nothing is measured, and only device=,
                       link=, rates= and out= count
  device_at=HOST:PORT  measured there, where fsl-serve profile has the same run; likewise edge_at=; ca=FILE token=FILE,
                       or insecure=true on this machine; wait=600 seconds at most
  out=FOLDER           of profile.json, profile.csv, best_points.csv and profile.png"""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code of `run_command`."""
    return run_command("fsl-profile", _USAGE, arguments, lambda given: _run(read_options(given)))


def _run(options: ProfileOptions) -> None:
    top = read_config(composed(options.overrides))
    device_profile = build_kind("device", top.device, DeviceProfile)
    link = build_kind("link", top.link, LinkProfile)
    given = {name: read_profile(path) for name, path in _files(options).items()}
    subject = None
    if options.measures or options.device_at or options.edge_at:
        subject = of_configuration(top) if options.run is None else of_run(options.run, options.front, options.int8)
        given = asked(options, subject, given)
    measured = _measured(options, subject, given, device_profile) if subject and options.measures else None
    device, edge = _sides(options, given, measured)
    power = DevicePower.of(device_profile, link) if options.names_device else None
    formats = _image_formats(options, subject, top)
    costs = SplitCosts(device=device, edge=edge, input_formats=formats, power=power)
    rows = compare(costs, options.rates, link)
    shown = measured or device
    for line in about_lines(shown):
        tell(line)
    print_table(profile_table(shown), "", "in profile.csv")
    tell(bottleneck_line(shown, bool(formats)))
    tell(_about_rates(options, costs, link))
    print_table(rates_table(rows, "float32"), "", "in best_points.csv")
    out = options.out or Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}-profile"
    out.mkdir(parents=True, exist_ok=True)
    if measured is not None:
        measured.write(out / "profile.json")
    write_text(out / "profile.csv", profile_csv(shown))
    write_text(out / "best_points.csv", rates_csv(rows))
    save_figure(draw_profile(costs, rows), out / "profile.png")
    tell(f"profile, CSV and figure: {os.path.relpath(out)}")


def _files(options: ProfileOptions) -> dict[str, Path]:
    pairs = {"device": options.profile, "edge": options.edge_profile}
    return {name: path for name, path in pairs.items() if path is not None}


def _measured(
    options: ProfileOptions, subject: ProfiledModel, given: Mapping[str, ModelProfile], device: DeviceProfile
) -> ModelProfile:
    """Measure here; where the other side's profile is given, points and batch are those of it."""
    other = next(iter(given.values()), None)
    points = subject.points(options.points if other is None else other.names)
    if other is not None and other.digest != points.digest():
        path = options.others[next(iter(given))]
        raise ConfigError(
            f"{path} is the profile of another model ({other.model}), or of other weights; give the same options, or "
            "the same run, as there"
        )
    usual = 1 if other is None else other.batch
    return measure(
        points,
        subject.inputs(options.batch or usual),
        repetitions=options.repetitions,
        warm_up=options.warm_up,
        threads=options.threads,
        checks=options.checks,
        power_active_watts=device.power_active_watts if options.names_device and "device" not in given else None,
    )


def _sides(
    options: ProfileOptions, given: Mapping[str, ModelProfile], measured: ModelProfile | None
) -> tuple[ModelProfile, ModelProfile]:
    device, edge = given.get("device", measured), given.get("edge", measured)
    assert device is not None
    assert edge is not None
    if options.device_speed != 1:
        device = device.faster(options.device_speed)
    return device, edge.faster(options.edge_speed) if options.edge_speed != 1 else edge


def _image_formats(options: ProfileOptions, subject: ProfiledModel | None, top: RunConfig) -> dict[str, Encoding]:
    """Returns what images of the data take as they are and as files; ConfigError where they were asked for in vain."""
    if subject is None:
        if options.images:
            raise ConfigError("images=...: nothing is measured here, so that there are no images; leave images out")
        return {}
    task: TaskData = subject.task
    if options.images is None and (task.scaling is None or len(task.input_shape) != 3):
        return {}
    found = {RAW: raw_image_encoding(task)} if options.images != () else {}
    for text in USUAL_IMAGES if options.images is None else options.images:
        found[text] = image_encoding(task, *read_format(text))
    return found


def _about_rates(options: ProfileOptions, costs: SplitCosts, link: LinkProfile) -> str:
    if any(options.others.values()):
        edge = f"device: {costs.device.machine}; edge: {costs.edge.machine}"
    elif options.edge_speed != 1 or options.device_speed != 1:
        speeds = {"device": options.device_speed, "edge": options.edge_speed}
        edge = "; ".join(f"{who}: {_speed(times)}" for who, times in speeds.items())
    else:
        edge = "device and edge: this machine, so that sending hardly pays; give edge_speed or edge_profile"
    return f"{edge}. An idle edge, and a round trip of {2e3 * link.latency_s:g} ms without data (link={link.name})"


def _speed(times: float) -> str:
    return "this machine" if times == 1 else f"assumed to compute {times:g} times as fast as this machine"


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
