"""Makes the table and the figure of docs/algorithms/fedfly.md from the sweep that the page names.

python -m benchmarks.fedfly multirun/fedfly docs/images/fedfly.png
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from fsl.run.plotting import STYLES, new_figure, save_png

CUTS = {"pool1": "SP1 (pool1)", "pool2": "SP2 (pool2)", "conv3": "SP3 (conv3)"}
HATCHES = {"migrate": "", "restart": "//"}
Key = tuple[str, float, str, str]  # cut, fraction, shares, on_move


def read(folder: Path) -> dict[Key, Mapping[str, float]]:
    """Read the first round of each run of the sweep."""
    found = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        overrides = OmegaConf.load(path.parent / ".hydra" / "overrides.yaml")
        said = {name: value for name, _, value in (str(entry).partition("=") for entry in overrides)}
        key = (
            said["model.cut"],
            float(said["mobility.fraction"]),
            said["partition.shares"],
            said["strategy.on_move"],
        )
        found[key] = json.loads(path.read_text().splitlines()[0])
    return dict(sorted(found.items(), key=lambda item: (list(CUTS).index(item[0][0]), item[0][1:])))


def table(found: Mapping[Key, Mapping[str, float]]) -> str:
    """Returns a Markdown table: seconds of a round, and what migrating saves."""
    lines = ["| cut | data of the device | moves at | migrate, s | of it the move, s | restart, s | saved |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (cut, fraction, shares, on_move), row in found.items():
        if on_move != "migrate":
            continue
        again = found[cut, fraction, shares, "restart"]
        numbers = json.loads(shares)
        saved = 1 - row["sim_seconds"] / again["sim_seconds"]
        lines.append(
            f"| {CUTS[cut]} | {numbers[0] / sum(numbers):.0%} | {fraction:.0%} | {row['sim_seconds']:.1f} "
            f"| {row['migration_seconds']:.2f} | {again['sim_seconds']:.1f} | {saved:.1%} |"
        )
    return "\n".join(lines)


def draw(found: Mapping[Key, Mapping[str, float]], shares: str, path: Path) -> None:
    """Draw the seconds of a round by cut, for both fractions and both ways."""
    figure, axes = new_figure("A round in which a device with half of the data moves: VGG5 on CIFAR-10")
    width, ticks = 0.2, list(CUTS)
    for place, (fraction, on_move) in enumerate((f, m) for f in (0.5, 0.9) for m in ("migrate", "restart")):
        heights = [found[cut, fraction, shares, on_move]["sim_seconds"] for cut in ticks]
        style = STYLES[0 if fraction == 0.5 else 1]
        axes.bar(
            [i + (place - 1.5) * width for i in range(len(ticks))],
            heights,
            width,
            label=f"{on_move}, moves at {fraction:.0%}",
            color=style.color if on_move == "migrate" else "white",
            edgecolor=style.color,
            hatch=HATCHES[on_move],
        )
    axes.set_xticks(range(len(ticks)), [CUTS[cut] for cut in ticks])
    axes.set_xlabel("cut")
    axes.set_ylabel("simulated seconds of a round")
    axes.legend(loc="upper left")
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    found = read(arguments.sweep)
    print(table(found))
    draw(found, "[3,1,1,1]", arguments.figure)


if __name__ == "__main__":
    main()
