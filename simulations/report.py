"""`fsl-report`: compare runs in a table, a CSV file and one HTML page with figures."""

import argparse
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from fsl.simulations.attacked import attacks_csv, attacks_table, reconstructions
from fsl.simulations.compare import Comparison, compare
from fsl.simulations.curves import pictures
from fsl.simulations.messages import one_line
from fsl.simulations.page import page
from fsl.simulations.records import read_runs
from fsl.simulations.spent import privacy_csv, privacy_table
from fsl.simulations.tables import Table, groups_csv, groups_table, paired_csv, paired_table, runs_csv

from fsl.errors import ConfigError, FslError
from fsl.files import write_text
from fsl.plotting import save_png

_WIDTH = 10_000  # of a table that goes to a file or pipe: no line is broken
_BETWEEN = 3  # characters between two columns


def report(
    folders: Sequence[Path],
    out: Path,
    target: float | None = None,
    baseline: str | None = None,
    title: str = "Comparison of runs",
) -> Comparison:
    """Compare the runs in these folders, and write `report.html`, CSV files and figures into `out`.

    `target` and `baseline` as for `compare`. ConfigError for folders without runs, and for what cannot be asked.
    """
    found = read_runs(folders)
    comparison = compare(found.records, target, baseline, found.idle, found.unreadable)
    drawn = [*pictures(comparison), *reconstructions(comparison)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for picture in drawn:
        save_png(picture.figure, out / "figures" / f"{picture.name}.png")
    write_text(out / "report.csv", groups_csv(comparison))
    write_text(out / "runs.csv", runs_csv(comparison))
    if comparison.paired:
        write_text(out / "paired.csv", paired_csv(comparison))
    if privacy_table(comparison) is not None:
        write_text(out / "privacy.csv", privacy_csv(comparison))
    if attacks_table(comparison) is not None:
        write_text(out / "attacks.csv", attacks_csv(comparison))
    write_text(out / "report.html", page(comparison, drawn, title, notes(comparison)))
    return comparison


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know beside the numbers, a sentence each."""
    said = [f"Target accuracy: {100 * comparison.target:g} %, {comparison.target_reason}."] if comparison.target else []
    if comparison.target is None:
        said.append(f"{comparison.target_reason[0].upper()}{comparison.target_reason[1:]}.")
    for state, meaning in (
        ("diverged", "a loss that was not finite, or a training loss above 2 ln(classes) for 3 rounds in a row"),
        ("unfinished", "it stopped before its last round, or is under way"),
        (
            "repeated",
            "settings and seed of another run here, of which the newest finished one counts",
        ),
    ):
        count = sum(len(getattr(group, state)) for group in comparison.groups)
        if count:
            said.append(f"{count} run{'' if count == 1 else 's'} {state}, not in any mean: {meaning}.")
    if comparison.idle:
        names = ", ".join(str(run.folder) for run in comparison.idle[:5])
        more = f" and {len(comparison.idle) - 5} more" if len(comparison.idle) > 5 else ""
        said.append(f"Without a finished round: {names}{more}.")
    return [*said, *(f"Left out: {line}." for line in comparison.unreadable)]


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (the report could not be written) or 2 (bad input)."""
    options = _parser().parse_args(arguments)
    try:
        comparison = report(options.folders, options.out, options.target, options.baseline, options.title)
    except ConfigError as error:
        return _say(error, 2)
    except (FslError, OSError) as error:
        return _say(error, 1)
    _print_tables(comparison)
    for note in notes(comparison):
        print(note)
    print(f"page: {options.out / 'report.html'}\ntables: {options.out / 'report.csv'}, {options.out / 'runs.csv'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fsl-report",
        description="Compare runs: a table, CSV files, and one HTML page with figures. Runs are grouped by the "
        "settings that differ, seeds apart.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run or a sweep, searched below")
    parser.add_argument("--target", type=float, help="accuracy, 0.8 for 80 %%; default: what every run reaches")
    parser.add_argument("--baseline", help="a part of the label of the group to compare with; default: the first")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for what is written (default: report)")
    parser.add_argument("--title", default="Comparison of runs", help="heading of the page")
    return parser


def _print_tables(comparison: Comparison) -> None:
    _print_table(groups_table(comparison), "")
    if (spent := privacy_table(comparison)) is not None:
        _print_table(spent, "what was spent against whom, of the worst run and device")
    if (attacked := attacks_table(comparison)) is not None:
        _print_table(attacked, "utility, epsilon, and what attacks found")
    paired = paired_table(comparison)
    if paired is not None:
        _print_table(paired, f"final accuracy, seed by seed, against {comparison.paired[0].baseline}")


def _print_table(data: Table, title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    widths = [
        max(len(word) for word in (*head.split(" "), *cells))
        for head, *cells in zip(data.head, *data.rows, strict=True)
    ]
    needed = accumulate(width + _BETWEEN for width in widths)
    shown = max(data.names + 2, sum(end < console.width for end in needed))  # names, runs and the first figure at least
    table = RichTable(title=Text(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
    for i, (head, width) in enumerate(list(zip(data.head, widths))[:shown]):
        table.add_column(Text(head), justify="right" if i >= data.names else "left", min_width=width, overflow="fold")
    for row in data.rows:
        table.add_row(*map(Text, row[:shown]))
    console.print(table)
    if shown < len(data.head):
        print(f"This terminal is too narrow for: {', '.join(data.head[shown:])}; they are on the page.")


def _say(error: BaseException, code: int) -> int:
    print(f"fsl-report: {one_line(error)}", file=sys.stderr)
    return code


def main() -> None:
    """The console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
