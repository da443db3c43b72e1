"""Writes a report's tables to paste: LaTeX with booktabs, or GitHub's Markdown."""

import re
from collections.abc import Sequence
from typing import Literal

from fsl.simulations.reports.tables import Table

Format = Literal["latex", "markdown"]
Titled = Sequence[tuple[str, Table]]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # \\textquotedbl needs an encoding that not every paper has
    "±": r"$\pm$",
    "\u00a0": "~",
    "…": r"\ldots{}",
    "\n": " ",
}


def in_markup(tables: Titled, form: Format, notes: Sequence[str]) -> str:
    """Write all tables, with notes as comments (LaTeX) or as a list (Markdown)."""
    if form == "latex":
        return "\n".join([*(latex(table, title) for title, table in tables), *(f"% {_line(note)}" for note in notes)])
    parts = [*(markdown(table, title) for title, table in tables), "".join(f"- {_escaped(note)}\n" for note in notes)]
    return "\n".join(part for part in parts if part)


def latex(table: Table, title: str) -> str:
    """Write a LaTeX table that needs only `\\usepackage{booktabs}`."""
    columns = "l" * table.names + "r" * (len(table.head) - table.names)
    head = [_tex(name) for name in table.head]
    rows = [head, *([_cell(cell) for cell in row] for row in table.rows)]
    lines = [f"    {' & '.join(cells)} " + r"\\" for cells in rows]
    label = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(title)}}}",
            rf"  \label{{tab:{label}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            lines[0],
            r"    \midrule",
            *lines[1:],
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown(table: Table, title: str) -> str:
    """Write a Markdown table under its title."""
    rule = ["---"] * table.names + ["---:"] * (len(table.head) - table.names)
    rows = [[_escaped(cell) for cell in row] for row in table.rows]
    lines = [[_escaped(name) for name in table.head], rule, *rows]
    return "\n".join([f"**{_escaped(title)}**", "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def _cell(text: str) -> str:
    r"""Returns a cell's text: a lone hyphen becomes a dash, a negative number gets a minus sign, `\\` is escaped."""
    escaped = "--" if text == "-" else _tex(text)
    signed = re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)
    return f"{{{signed}}}" if signed.startswith(("[", "*")) else signed


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", _line(text))
    return re.sub(r"^([-+])(?=\s|$)", r"\\\1", escaped)
