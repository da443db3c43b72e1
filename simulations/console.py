"""Prints tables on a terminal."""

import sys
from itertools import accumulate

from fsl.simulations.reports.tables import Table

_WIDTH = 10_000  # for a file or pipe, so that no line breaks
_BETWEEN = 3  # characters between two columns


def print_table(data: Table, title: str, elsewhere: str = "on the page") -> None:
    """Print as many columns as fit; a line names those left out, and where to find them."""
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
    shown = max(data.names + 2, sum(end < console.width for end in needed))  # names, runs and the first number at least
    table = RichTable(title=Text(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
    for i, (head, width) in enumerate(list(zip(data.head, widths))[:shown]):
        table.add_column(Text(head), justify="right" if i >= data.names else "left", min_width=width, overflow="fold")
    for row in data.rows:
        table.add_row(*map(Text, row[:shown]))
    console.print(table)
    if shown < len(data.head):
        print(f"This terminal is too narrow for: {', '.join(data.head[shown:])}; they are {elsewhere}.")
