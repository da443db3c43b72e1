"""Many devices, one edge: MAHPPO's latency and energy beside every baseline's, over several seeds.

    python -m benchmarks.many_devices --out outputs/many_devices
    python -m benchmarks.many_devices --devices 1 2 --seeds 5
    python -m benchmarks.many_devices --trained outputs/many_devices     # the policies of before, and no training

Devices compute ResNet18 as a Jetson Nano did in the paper's table, with its compression; the edge is `--faster` times
as fast, its queue counts, and answers come back at `--down` Mbit/s. Each seed trains a policy for devices from 1 to
100 m away, and every rule meets the same episodes: with distances drawn, and with all devices at 50 m as in the paper's
test. One and two devices are held against the enumerated optimum, and more against a search that improves one device
after the other: both know the simulation and try thousands of actions in it for each episode.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as students_t

from fsl.files import write_json
from fsl.inference.many_devices import (
    FleetEpisodes,
    FleetPolicy,
    FleetResult,
    FleetRule,
    FleetSetting,
    GreedyFleet,
    GreedyInTurn,
    LocalFleet,
    OffloadingFleet,
    PpoOptions,
    RadioCell,
    TakingTurns,
    enumerated_optimum,
    evaluated,
    jetson_nano_resnet18,
    load_fleet_policy,
    searched_actions,
    train_fleet_policy,
)

SLOTS = {1: 40_960, 2: 81_920}  # of experience, by devices; more: `MANY_SLOTS`
MANY_SLOTS = 122_880
EVALUATION = 1234  # the seed of the episodes that rules are compared on


def setting_of(devices: int, options: argparse.Namespace) -> FleetSetting:
    """Returns a fleet of so many devices."""
    channels = options.channels or (1 if devices <= 2 else 2)
    table = jetson_nano_resnet18(edge_times_as_fast=options.faster)
    return FleetSetting(table=table, devices=devices, radio=RadioCell(channels=channels, down_mbit=options.down))


def row_of(result: FleetResult) -> dict[str, Any]:
    """Returns a rule's figures: milliseconds, millijoules and cost of a task, means over episodes."""
    assert result.p95 is not None
    assert result.offloaded is not None
    return {
        "rule": result.rule,
        "ms": float(result.seconds.mean()) * 1e3,
        "mJ": float(result.joules.mean()) * 1e3,
        "cost": float(result.costs.mean()) * 1e3,
        "slowest_ms": float(result.slowest.mean()) * 1e3,
        "p95_ms": result.p95 * 1e3,
        "longest_s": result.longest,
        "offloaded": result.offloaded,
        "costs": (result.costs * 1e3).tolist(),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean over seeds, and half the width of its 95% interval (Student's t)."""
    if len(values) < 2:
        return float(np.mean(values)), 0.0
    half = students_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def baselines_of(setting: FleetSetting, episodes: FleetEpisodes) -> list[dict[str, Any]]:
    """Returns the figures of every rule that is not trained, the one that knows most last."""
    best = enumerated_optimum if setting.devices <= 2 else searched_actions
    rules: list[FleetRule] = [LocalFleet(), OffloadingFleet(), GreedyFleet(), GreedyFleet("round robin")]
    rules += [GreedyInTurn(), TakingTurns(), best(setting, episodes)]
    rows = [row_of(evaluated(rule, setting, episodes, logs=True)) for rule in rules]
    for row in rows:
        print(line(row), flush=True)
    return rows


def policies_of(setting: FleetSetting, options: argparse.Namespace) -> list[FleetPolicy]:
    """Returns a policy of each seed: trained now, or read."""
    slots = options.slots or SLOTS.get(setting.devices, MANY_SLOTS)
    found = []
    for seed in range(options.seeds):
        name = f"policy_{setting.devices}_{setting.radio.channels}_any_{seed}.safetensors"
        if options.trained is not None:
            found.append(load_fleet_policy(options.trained / name))
            continue
        began = time.process_time()
        found.append(train_fleet_policy(setting, seed=seed, options=PpoOptions(slots=slots)))
        print(f"seed {seed}: {slots} slots in {time.process_time() - began:.0f} s of one core", flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            found[-1].save(options.out / name)
    return found


def compared(devices: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train by each seed, and run every rule on the same episodes: of any distances, and of 50 m."""
    setting = setting_of(devices, options)
    counts = ((devices, "device"), (setting.radio.channels, "channel"))
    title = ", ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts)
    print(f"\n{title}", flush=True)
    policies, found = policies_of(setting, options), []
    places = {
        "1 to 100 m": FleetEpisodes.drawn(setting, options.episodes, EVALUATION),
        "all at 50 m": FleetEpisodes.at(setting, 50.0),
    }
    for place, episodes in places.items():
        print(f"\n{title}, {place}", flush=True)
        rows = baselines_of(setting, episodes)
        trained = [row_of(evaluated(policy, setting, episodes, logs=True)) for policy in policies]
        for row in trained:
            print(line(row), flush=True)
        means = {
            key: interval([float(row[key]) for row in trained])
            for key in ("ms", "mJ", "cost", "slowest_ms", "p95_ms", "longest_s")
        }
        over = interval([float(row["cost"]) / float(rows[-1]["cost"]) - 1 for row in trained])
        print(f"MAHPPO: {', '.join(f'{key} {mean:.2f} ± {half:.2f}' for key, (mean, half) in means.items())}")
        print(f"cost over {rows[-1]['rule']}: {over[0]:+.1%} ± {over[1]:.1%}", flush=True)
        found.append(
            {"scene": f"{title}, {place}", "baselines": rows, "trained": trained, "means": means, "over": over}
        )
    return found


def line(row: dict[str, Any]) -> str:
    """Returns a row of the table."""
    return (
        f"{row['rule']:<20} {row['ms']:9.2f} ms {row['mJ']:9.2f} mJ {row['cost']:9.2f} cost "
        f"{row['slowest_ms']:9.2f} ms slowest {row['p95_ms']:8.1f} ms p95 {row['longest_s']:6.2f} s longest "
        f"{row['offloaded']:6.1%} offloaded"
    )


def read_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 5], help="how many there are, one scene each")
    parser.add_argument("--channels", type=int, help="default: 1 for one or two devices, else 2")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=16, help="on which rules are compared")
    parser.add_argument("--slots", type=int, help="of experience; default by devices")
    parser.add_argument("--faster", type=float, default=20.0, help="how many times as fast the edge is as a device")
    parser.add_argument("--down", type=float, default=10.0, help="Mbit/s of answers")
    parser.add_argument(
        "--trained", type=Path, help="folder of policies that were trained before, in place of training"
    )
    parser.add_argument("--out", type=Path, help="folder for results.json and the policies")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Compare rules in each scene, and print and write what came of it."""
    options = read_options(given)
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for devices in options.devices:
        found += compared(devices, options)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            said = {name: str(value) for name, value in vars(options).items()}
            write_json(options.out / "results.json", {"options": said, "scenes": found})


if __name__ == "__main__":
    main()
