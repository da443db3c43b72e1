"""Adds to the built pages what has a file of its own, so that a new algorithm or choice needs no list to be edited.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml).
"""

import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"


def on_config(config: Any) -> Any:
    """Add the pages of docs/algorithms/ that the navigation does not name, by their headings."""
    section = next(entry["Algorithms"] for entry in config["nav"] if "Algorithms" in entry)
    named = {page for entry in section for page in entry.values()}
    for page in sorted((HERE / "algorithms").glob("*.md")):
        if (path := f"algorithms/{page.name}") not in named:
            section.append({page.read_text().partition("\n")[0].lstrip("# "): path})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Complete the table of groups in the page of options."""
    return with_all_choices(markdown) if page.file.src_uri == "configuration.md" else markdown


def with_all_choices(markdown: str) -> str:
    """Add to each group's row the choices in configs/ that it does not name."""

    def complete(row: re.Match[str]) -> str:
        choices = sorted(file.stem for file in (CONFIGS / row["group"]).glob("*.yaml"))
        missing = [f"`{name}`" for name in choices if not re.search(rf"\b{name}\b", row["named"])]
        also = f"; also {' '.join(missing)}" if missing else ""
        return f"| `{row['group']}` | {row['named']}{also} |"

    return re.sub(r"^\| `(?P<group>\w+)` \| (?P<named>.*) \|$", complete, markdown, flags=re.M)
