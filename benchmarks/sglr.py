"""Makes SGLR's comparison, one picture and one table, from the runs of docs/sglr.md.

python -m benchmarks.sglr FOLDER... --out docs/images/sglr.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fsl.simulations.reports.run_records import RunRecord, read_runs
from fsl.simulations.reports.spreads import Spread
from matplotlib.axes import Axes

from fsl.run.plotting import STYLES, Style, new_figure, save_png

PHI = (0.0, 0.25, 0.5, 0.75, 1.0)
ALPHA = (0.0, 0.5, 1.0, 2.0)
Key = tuple[str, int, float | None, float | None]  # strategy, devices, phi, alpha
Found = dict[Key, dict[int, float]]  # percent by seed


def final_accuracies(records: Sequence[RunRecord]) -> Found:
    """Returns percent by group and seed, without diverged runs."""
    found: Found = {}
    for record in records:
        if record.state != "finished" or record.seed is None:
            continue
        settings = record.settings
        strategy = str(settings["strategy"]).rpartition(".")[2]
        key = (strategy, int(settings["devices"]), settings.get("strategy.phi"), settings.get("strategy.alpha"))
        found.setdefault(key, {})[record.seed] = 100 * record.rows[-1]["accuracy"]
    return found


def spread_of(values: dict[int, float]) -> tuple[float, float]:
    """Returns the mean over seeds, and half of its 95 % interval (0 for one seed)."""
    spread = Spread.of(values[seed] for seed in sorted(values))
    assert spread is not None
    return spread.mean, 0.0 if spread.low is None else spread.mean - spread.low


def draw(axes: Axes, found: Found, devices: int) -> None:
    """Draw the strategies to compare SGLR with: their means, and 95 % intervals as bands."""
    for style, strategy in zip(STYLES[2:], ("PSL", "SplitFedV1", "SplitFedV2")):
        if (strategy, devices, None, None) in found:
            mean, half = spread_of(found[strategy, devices, None, None])
            axes.axhline(mean, color=style.color, linestyle=style.linestyle, label=strategy)
            axes.axhspan(mean - half, mean + half, color=style.color, alpha=0.12)
    axes.grid(True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_line(axes: Axes, found: Found, keys: dict[float, Key], label: str, style: Style) -> None:
    """Draw accuracy over a parameter's values, with 95 % intervals over seeds."""
    known = {value: spread_of(found[key]) for value, key in keys.items() if key in found}
    axes.errorbar(
        list(known),
        [mean for mean, _ in known.values()],
        yerr=[half for _, half in known.values()],
        color=style.color,
        linestyle=style.linestyle,
        marker=style.marker,
        capsize=4,
        linewidth=2,
        label=label,
    )
    axes.set_xticks(list(keys))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=10)
    arguments = parser.parse_args()
    found = final_accuracies(read_runs(arguments.folders).records)
    devices = arguments.devices
    figure, left = new_figure(f"SGLR on CIFAR-10, {devices} devices, three seeds, 95 % intervals", width=9.6)
    left.remove()
    left, right = figure.subplots(1, 2, sharey=True)
    draw(left, found, devices)
    draw(right, found, devices)
    scaled: dict[float, Key] = {phi: ("SGLR", devices, phi, 1.0) for phi in PHI}
    plain: dict[float, Key] = {phi: ("SGLR", devices, phi, 0.0) if phi else ("PSL", devices, None, None) for phi in PHI}
    draw_line(left, found, scaled, "SGLR, alpha = 1", STYLES[0])
    draw_line(left, found, plain, "SGLR, alpha = 0", STYLES[1])
    by_alpha: dict[float, Key] = {alpha: ("SGLR", devices, 0.5, alpha) for alpha in ALPHA}
    draw_line(right, found, by_alpha, "SGLR, phi = 0.5", STYLES[5])
    left.set_xlabel("phi")
    right.set_xlabel("alpha")
    left.set_ylabel("final test accuracy (%)")
    handles = {label: handle for axes in (left, right) for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_png(figure, arguments.out)
    for key in sorted(found, key=str):
        mean, half = spread_of(found[key])
        print(key, f"{mean:.2f} ± {half:.2f} (n={len(found[key])})")


if __name__ == "__main__":
    main()
