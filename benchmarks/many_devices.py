"""Many devices, one edge: MAHPPO's latency and energy beside every baseline's, over several seeds.

    python -m benchmarks.many_devices --out outputs/many_devices
    python -m benchmarks.many_devices --devices 1 2 --seeds 5
    python -m benchmarks.many_devices --devices 5 --at 50

Devices compute ResNet18 as a Jetson Nano did in the paper's table, with its compression; the edge is `--faster` times
as fast, its queue counts, and answers come back at `--down` Mbit/s. Each seed trains a policy, and every rule meets the
same episodes. One and two devices are held against the enumerated optimum, and more against a search that improves one
device after the other: both know the simulation and try thousands of actions in it for each episode.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as students_t

from fsl.files import write_json
from fsl.inference.many_devices import (
    FleetEpisodes,
    FleetResult,
    FleetRule,
    FleetSetting,
    GreedyFleet,
    GreedyInTurn,
    LocalFleet,
    OffloadingFleet,
    PpoOptions,
    RadioCell,
    enumerated_optimum,
    evaluated,
    jetson_nano_resnet18,
    searched_actions,
    train_fleet_policy,
)

SLOTS = {1: 40_960, 2: 81_920}  # of experience, by devices; more: `MANY_SLOTS`
MANY_SLOTS = 122_880
EVALUATION = 1234  # the seed of the episodes that rules are compared on


@dataclass(frozen=True)
class Scene:
    """Devices and channels; `at`: metres of all, None for any."""

    devices: int
    channels: int
    at: float | None

    @property
    def title(self) -> str:
        """The scene in words."""
        devices = "1 device" if self.devices == 1 else f"{self.devices} devices"
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        return f"{devices}, {channels}, {'1 to 100' if self.at is None else f'all at {self.at:g}'} m"


def setting_of(scene: Scene, faster: float, down: float) -> FleetSetting:
    """Returns the fleet of a scene."""
    radio = RadioCell(channels=scene.channels, down_mbit=down)
    near, far = (1.0, 100.0) if scene.at is None else (scene.at, scene.at)
    return FleetSetting(
        table=jetson_nano_resnet18(edge_times_as_fast=faster),
        devices=scene.devices,
        radio=radio,
        nearest=near,
        farthest=far,
    )


def row_of(result: FleetResult) -> dict[str, object]:
    """Returns a rule's figures: milliseconds, millijoules and cost of a task, means over episodes."""
    assert result.p95 is not None
    assert result.offloaded is not None
    return {
        "rule": result.rule,
        "ms": float(result.seconds.mean()) * 1e3,
        "mJ": float(result.joules.mean()) * 1e3,
        "cost": float(result.costs.mean()) * 1e3,
        "p95_ms": result.p95 * 1e3,
        "offloaded": result.offloaded,
        "costs": (result.costs * 1e3).tolist(),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean over seeds, and half the width of its 95% interval (Student's t)."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0
    half = students_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def compared(scene: Scene, options: argparse.Namespace) -> dict[str, object]:
    """Train by each seed, and run every rule on the same episodes."""
    setting = setting_of(scene, options.faster, options.down)
    episodes = FleetEpisodes.drawn(setting, options.episodes, EVALUATION)
    best = enumerated_optimum if scene.devices <= 2 else searched_actions
    rules: list[FleetRule] = [LocalFleet(), OffloadingFleet(), GreedyFleet(), GreedyFleet("round robin")]
    rules += [GreedyInTurn(), best(setting, episodes)]
    rows = [row_of(evaluated(rule, setting, episodes, logs=True)) for rule in rules]
    print(f"\n{scene.title}", flush=True)
    for row in rows:
        print(line(row), flush=True)
    slots = options.slots or SLOTS.get(scene.devices, MANY_SLOTS)
    trained = []
    for seed in range(options.seeds):
        began = time.process_time()
        policy = train_fleet_policy(setting, seed=seed, options=PpoOptions(slots=slots))
        seconds = time.process_time() - began
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            name = f"policy_{scene.devices}_{scene.channels}_{'any' if scene.at is None else f'{scene.at:g}m'}_{seed}"
            policy.save(options.out / f"{name}.safetensors")
        row = row_of(evaluated(policy, setting, episodes, logs=True)) | {"seed": seed, "cpu_seconds": seconds}
        trained.append(row)
        print(f"{line(row)}, seed {seed}, {seconds:.0f} s of one core", flush=True)
    means = {key: interval([float(row[key]) for row in trained]) for key in ("ms", "mJ", "cost", "p95_ms")}
    over = interval([float(row["cost"]) / float(rows[-1]["cost"]) - 1 for row in trained])
    print(f"MAHPPO: {', '.join(f'{key} {mean:.2f} ± {half:.2f}' for key, (mean, half) in means.items())}")
    print(f"cost over {rows[-1]['rule']}: {over[0]:+.1%} ± {over[1]:.1%}", flush=True)
    return {"scene": scene.title, "slots": slots, "baselines": rows, "trained": trained, "means": means, "over": over}


def line(row: dict[str, object]) -> str:
    """Returns a row of the table."""
    return (
        f"{row['rule']:<20} {row['ms']:9.2f} ms {row['mJ']:9.2f} mJ {row['cost']:9.2f} cost "
        f"{row['p95_ms']:9.1f} ms p95 {row['offloaded']:6.1%} offloaded"
    )


def read_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 5], help="how many there are, one scene each")
    parser.add_argument("--channels", type=int, help="default: 1 for one or two devices, else 2")
    parser.add_argument("--at", type=float, help="metres of all devices; default: anywhere from 1 to 100")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=16, help="on which rules are compared")
    parser.add_argument("--slots", type=int, help="of experience; default by devices")
    parser.add_argument("--faster", type=float, default=20.0, help="how many times as fast the edge is as a device")
    parser.add_argument("--down", type=float, default=10.0, help="Mbit/s of answers")
    parser.add_argument("--out", type=Path, help="folder for results.json and the policies")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Compare rules in each scene, and print and write what came of it."""
    options = read_options(given)
    torch.set_num_threads(1)
    found = []
    for devices in options.devices:
        channels = options.channels or (1 if devices <= 2 else 2)
        found.append(compared(Scene(devices, channels, options.at), options))
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(
                options.out / "results.json", {"options": {**vars(options), "out": str(options.out)}, "scenes": found}
            )


if __name__ == "__main__":
    main()
