"""A report as one HTML page that needs nothing else: no network, no other file."""

from base64 import b64encode
from collections.abc import Sequence
from importlib import resources

from fsl.simulations.attacked import attacks_table
from fsl.simulations.compare import Comparison
from fsl.simulations.curves import Picture
from fsl.simulations.spent import privacy_table
from fsl.simulations.tables import groups_table, paired_table, runs_table
from jinja2 import Environment, StrictUndefined

from fsl.plotting import to_svg


def page(comparison: Comparison, pictures: Sequence[Picture], title: str, notes: Sequence[str]) -> str:
    """The page; every text in it is escaped."""
    template = (resources.files("fsl.simulations") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        title=title,
        notes=notes,
        runs=sum(len(group.runs) for group in comparison.groups),
        groups=len(comparison.groups),
        shared=comparison.shared,
        results=groups_table(comparison),
        paired=paired_table(comparison),
        privacy=privacy_table(comparison),
        attacked=attacks_table(comparison),
        baseline=comparison.paired[0].baseline if comparison.paired else "",
        figures=[(picture, b64encode(to_svg(picture.figure)).decode()) for picture in pictures],
        all_runs=runs_table(comparison),
    )
