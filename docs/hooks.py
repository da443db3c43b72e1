"""Adds to the built pages what has a file of its own, so that a new algorithm or choice needs no list to be edited.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml).
"""

import base64
import json
import re
from collections.abc import Iterator
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


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook, with its pictures."""
    from mkdocs.structure.files import File

    for path in sorted((HERE / "notebooks").glob("*.ipynb")):
        text, pictures = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns a notebook as Markdown, and its pictures by name."""
    pictures: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            parts += shown(output, path.stem, pictures)
    return "\n\n".join(parts) + "\n", pictures


def shown(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield what a cell put out as Markdown; pictures are kept beside."""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        yield f"![{''.join(data.get('text/plain', 'figure')).strip('<>')}]({name})"
    elif "text/html" in data:
        yield "".join(data["text/html"])
    elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
        yield f"```text\n{text}\n```"


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
