"""`fsl-report`: compares runs in tables, CSV files and one HTML page with figures."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from fsl.simulations.command_lines import Parser
from fsl.simulations.console import print_table
from fsl.simulations.endings import silence_stdout
from fsl.simulations.error_lines import one_line
from fsl.simulations.reports.attack_findings import attacks_csv, attacks_table, reconstructions
from fsl.simulations.reports.common_figure import common_csv, common_of_groups, common_picture, common_table
from fsl.simulations.reports.compare import Comparison, compare
from fsl.simulations.reports.csv_tables import against_csv, groups_csv, paired_csv, runs_csv
from fsl.simulations.reports.curves import pictures
from fsl.simulations.reports.markup import in_markup
from fsl.simulations.reports.measures import numbers_of
from fsl.simulations.reports.notes import notes
from fsl.simulations.reports.page import page
from fsl.simulations.reports.privacy_spent import privacy_csv, privacy_table
from fsl.simulations.reports.ranked import ranked
from fsl.simulations.reports.renaming import Renames
from fsl.simulations.reports.response_figure import draw_response
from fsl.simulations.reports.run_records import read_runs
from fsl.simulations.reports.tables import Table, against_table, groups_table, paired_table

from fsl.errors import ConfigError, FslError, RunError
from fsl.files import write_bytes
from fsl.run.figure_bytes import to_bytes
from fsl.run.plotting import FORMATS, check_formats
from fsl.run.run_folder import RunFolder

_FORMS = ("table", "latex", "markdown")
_FIGURES = ("learning", "bytes", "time", "final", "against", "common", "reconstructed-*")
_PARTS = ("paired.csv", "against.csv", "privacy.csv", "attacks.csv")  # files that not every report has

Folder = str | PathLike[str]


def report(
    folders: Folder | Sequence[Folder],
    out: Folder = "report",
    target: float | None = None,
    baseline: str | None = None,
    title: str = "Comparison of runs",
    *,
    by: str | Sequence[str] | None = None,
    metric: str | None = None,
    against: str | None = None,
    rename: Renames = (),
    figures: str | Sequence[str] = "png",
) -> Comparison:
    """Compare the runs in and below these folders; write `report.html`, tables and figures into `out`.

    `target`, `baseline`, `by`, `metric`, `against` and `rename` as for `compare`; `by` may be "lr,strategy". `figures`:
    one or several of png, svg, pdf. It replaces an earlier report. ConfigError, in one line, for folders without
    runs, and for invalid arguments.
    """
    tops, into = _paths(folders, "folders"), _paths(out, "out")[0]
    _check_types(target=target, baseline=baseline, title=title, metric=metric, against=against, rename=rename)
    keys = None if by is None else _texts(by, "by")
    formats = check_formats(_texts(figures, "figures"), "--figures")
    run = RunFolder(into)
    if run.is_used:
        raise ConfigError(f"--out {into}: this is the folder of a run, which has figures of its own; choose another")
    found = read_runs(tops)
    rank = ranked(found.records)
    if rank is not None and metric is None and rank.metric in numbers_of(row for r in found.records for row in r.rows):
        metric = rank.metric  # the metric that chose the trials
    comparison = compare(
        found.records,
        target,
        baseline,
        found.idle,
        found.unreadable,
        by=keys,
        metric=metric,
        against=against,
        rename=rename,
        rank=rank,
    )
    _write(_files(comparison, into, title, formats), into)
    return comparison


def tables_of(comparison: Comparison) -> list[tuple[str, Table]]:
    """Returns the tables for a paper, each with its title."""
    metric = comparison.measure.heading.removesuffix(" (%)")
    costs = groups_table(comparison, "costs")
    setting = comparison.response.setting if comparison.response is not None else ""
    found = [
        ("Results", groups_table(comparison, "results")),
        ("Costs", costs if len(costs.head) > costs.names else None),
        ("Common metrics", common_table(common_of_groups(comparison), "group")),
        ("Epsilon of the worst run and device", privacy_table(comparison)),
        ("Attacks", attacks_table(comparison)),
        (f"Difference in {metric} to {comparison.baseline}, seed by seed", paired_table(comparison)),
        (f"{metric} against {setting}".capitalize(), against_table(comparison)),
    ]
    return [(name, table) for name, table in found if table is not None]


def _files(comparison: Comparison, out: Path, title: str, formats: Sequence[str]) -> dict[str, bytes]:
    """Returns all files of a report, by name."""
    effect = draw_response(comparison)
    common = common_picture(comparison)
    drawn = [*pictures(comparison), *(one for one in (effect, common) if one is not None), *reconstructions(comparison)]
    tables, said = tables_of(comparison), notes(comparison)
    parts = {
        "paired.csv": paired_csv(comparison),
        "against.csv": against_csv(comparison),
        "privacy.csv": privacy_csv(comparison) if privacy_table(comparison) is not None else "",
        "attacks.csv": attacks_csv(comparison) if attacks_table(comparison) is not None else "",
    }
    texts = {
        "report.csv": groups_csv(comparison),
        "runs.csv": runs_csv(comparison),
        "common.csv": common_csv(common_of_groups(comparison), "group"),
        **{name: text for name, text in parts.items() if text},
        "report.tex": in_markup(tables, "latex", said),
        "report.md": in_markup(tables, "markdown", said),
        "report.html": page(comparison, drawn, title, said, out),
    }
    images = {f"figures/{one.name}.{form}": to_bytes(one.figure, form) for one in drawn for form in formats}
    return images | {name: text.encode() for name, text in texts.items()}


def _write(files: Mapping[str, bytes], out: Path) -> None:
    """Write a report into its folder: all of it, or nothing."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: that is a file; name a folder")
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".new-", dir=out) as new:
            for name, content in files.items():
                path = Path(new, name)
                path.parent.mkdir(exist_ok=True)
                write_bytes(path, content)
            _remove_old(out)
            for name in files:
                os.replace(Path(new, name), out / name)
    except OSError as error:
        why = error.strerror or str(error)
        raise RunError(f"--out {out}: the report cannot be written there ({why}); choose another folder") from None


def _remove_old(out: Path) -> None:
    """Remove an earlier report's files that this one may not have."""
    for name in _PARTS:
        (out / name).unlink(missing_ok=True)
    for name in _FIGURES:
        for form in FORMATS:
            for path in (out / "figures").glob(f"{name}.{form}"):
                path.unlink()


def _paths(given: Any, name: str) -> list[Path]:
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    paths = list(given) if several and name == "folders" else [given]
    wrong = next((path for path in paths if not isinstance(path, str | PathLike) or str(path) == ""), None)
    if wrong is not None or not paths or any(path is None for path in paths):
        shown = wrong if paths else given
        what = "a folder (text or Path), or a list of folders" if name == "folders" else "a folder (text or Path)"
        raise ConfigError(f"{name}={shown!r}: it must be {what}")
    return [Path(path) for path in paths]


def _texts(given: Any, name: str) -> list[str]:
    texts = given.split(",") if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or isinstance(texts, bytes) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name}={given!r}: it must be a text such as 'a,b', or a list of texts")
    if not texts or not all(text.strip() for text in texts):
        raise ConfigError(f"--{name} {given!r}: there is an empty name in it; give names with commas between them")
    return [text.strip() for text in texts]


def _check_types(**given: Any) -> None:
    target, rename = given.pop("target"), given.pop("rename")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise ConfigError(f"target={target!r}: it must be a number, 0.8 for 80 %")
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{name}={value!r}: it must be a text")
    several = isinstance(rename, Sequence) and not isinstance(rename, str | bytes)
    texts = [*rename, *rename.values()] if isinstance(rename, Mapping) else rename
    if not (isinstance(rename, Mapping) or several) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"rename={rename!r}: it must be a mapping of texts, such as {{'lr': 'learning rate'}}")


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (the report could not be written) or 2 (bad input)."""
    try:
        options = _parser().parse_args(arguments)
        comparison = report(
            options.folders,
            options.out,
            options.target,
            options.baseline,
            options.title,
            by=options.by,
            metric=options.metric,
            against=options.against,
            rename=options.rename,
            figures=options.figures,
        )
    except ConfigError as error:
        return _say(error, 2)
    except (FslError, OSError) as error:
        return _say(error, 1)
    try:
        _print(comparison, options.format, options.out)
        sys.stdout.flush()
    except OSError as error:
        silence_stdout()
        line = f"the report is in {options.out}, but what was to be printed cannot be ({one_line(error)})"
        return 0 if isinstance(error, BrokenPipeError) else _say(RunError(line), 1)
    return 0


def _print(comparison: Comparison, form: Literal["table", "latex", "markdown"], out: Path) -> None:
    if form != "table":  # print nothing but the tables, to paste or to redirect
        print(in_markup(tables_of(comparison), form, notes(comparison)), end="")
        return
    _print_tables(comparison)
    for note in notes(comparison):
        print(note)
    print(f"page: {out / 'report.html'}")
    print(f"tables: {', '.join(str(out / f'report.{ending}') for ending in ('csv', 'tex', 'md'))}")
    print(f"runs: {out / 'runs.csv'}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fsl-report",
        description="Compare runs: tables, CSV files, and one HTML page with figures. Runs are grouped by the settings "
        "that differ, names and tags among them, seeds apart.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a run or a sweep, searched below")
    parser.add_argument("--target", type=float, help="accuracy, 0.8 for 80 %%; default: what every run reaches")
    parser.add_argument("--baseline", help="a part of the label of the group to compare with; default: the first")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for what is written (default: report)")
    parser.add_argument("--title", default="Comparison of runs", help="heading of the page")
    parser.add_argument("--by", metavar="KEY[,KEY]", help="group by these settings, name or tags alone")
    parser.add_argument("--metric", help="a column of metrics.jsonl, or bytes (default: accuracy)")
    parser.add_argument("--against", metavar="KEY", help="draw the metric over this setting, such as optimizer.lr")
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="what a group, a setting or a value is to be called; may be given several times",
    )
    parser.add_argument("--format", choices=_FORMS, default="table", help="what is printed (default: table)")
    parser.add_argument("--figures", default="png", metavar="FORM[,FORM]", help="png, svg, pdf (default: png)")
    return parser


def _print_tables(comparison: Comparison) -> None:
    print_table(groups_table(comparison), "")
    metric = comparison.measure.heading.removesuffix(" (%)")
    if (spent := privacy_table(comparison)) is not None:
        print_table(spent, "what was spent against whom, of the worst run and device")
    if (attacked := attacks_table(comparison)) is not None:
        print_table(attacked, "utility, epsilon, and what attacks found")
    if (paired := paired_table(comparison)) is not None:
        print_table(paired, f"{metric}, seed by seed, against {comparison.baseline}")
    if comparison.response is not None and (against := against_table(comparison)) is not None:
        print_table(against, f"{metric} against {comparison.response.setting}")


def _say(error: BaseException, code: int) -> int:
    print(f"fsl-report: {one_line(error)}", file=sys.stderr)
    return code


def main() -> None:
    """Run the console script."""
    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
