"""Writes a report as one HTML page that needs no network and no other file."""

import os
from base64 import b64encode
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from fsl.simulations.reports.attack_findings import attacks_table
from fsl.simulations.reports.common_figure import common_of_groups, common_table
from fsl.simulations.reports.compare import Comparison
from fsl.simulations.reports.curves import Picture
from fsl.simulations.reports.privacy_spent import privacy_table
from fsl.simulations.reports.tables import against_table, groups_table, paired_table, runs_table
from jinja2 import Environment, StrictUndefined

from fsl.run.plotting import to_svg


def page(
    comparison: Comparison, pictures: Sequence[Picture], title: str, notes: Sequence[str], out: Path | None = None
) -> str:
    """Write the page, with every text escaped; links to runs' folders where `out`, the page's folder, is given."""
    template = (resources.files("fsl.simulations.reports") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folders = [run.folder for group in comparison.groups for run in group.runs] + [r.folder for r in comparison.idle]
    costs = groups_table(comparison, "costs")
    return environment.from_string(template).render(
        title=title,
        notes=notes,
        runs=sum(len(group.runs) for group in comparison.groups),
        groups=len(comparison.groups),
        shared=comparison.shared,
        sources=comparison.sources,
        results=groups_table(comparison, "results"),
        costs=costs if len(costs.head) > costs.names else None,
        paired=paired_table(comparison),
        common=common_table(common_of_groups(comparison), "group"),
        privacy=privacy_table(comparison),
        attacked=attacks_table(comparison),
        against=against_table(comparison),
        metric=comparison.measure.heading.removesuffix(" (%)"),
        setting="" if comparison.response is None else comparison.response.setting,
        baseline=comparison.baseline,
        figures=[(picture, b64encode(to_svg(picture.figure)).decode()) for picture in pictures],
        all_runs=runs_table(comparison),
        links={} if out is None else {str(folder): link for folder in folders if (link := _link(folder, out))},
    )


def _link(folder: Path, out: Path) -> str | None:
    """Returns a run's folder relative to the page, so that both can move together; None where there is no path."""
    try:
        return quote(Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()) + "/"
    except ValueError:  # on another drive
        return None
