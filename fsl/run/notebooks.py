"""A progress bar in a notebook's output, which is redrawn in its place."""

import html
import sys
import time

_OFTEN = 0.25  # seconds between two updates: a browser is told of some rounds a second, not of thousands


def in_notebook() -> bool:
    """Returns whether this process is a notebook's kernel, whose front end shows HTML."""
    shell = sys.modules.get("IPython")
    kernel = None if shell is None else shell.get_ipython()
    return kernel is not None and getattr(kernel, "kernel", None) is not None


class NotebookBar:
    """A bar in a notebook's output, redrawn in its place; it needs no widgets, and stays when the run is over."""

    def __init__(self, heading: str, rounds: int, done: int):
        self._heading, self._rounds, self._first = heading, rounds, done
        self._began = self._told = time.monotonic()
        self._last: tuple[int, str] = (done, "")
        self._shown = self._last
        from IPython.display import HTML, display

        self._html = HTML
        self._handle = display(HTML(self._drawn()), display_id=True)

    def move(self, round: int, words: str) -> None:
        """Show a round, if the last was not shown just now."""
        self._last = (round, words)
        if time.monotonic() - self._told >= _OFTEN:
            self._update()

    def stop(self) -> None:
        """Show the last round."""
        if self._shown != self._last:
            self._update()

    def _update(self) -> None:
        self._told, self._shown = time.monotonic(), self._last
        if self._handle is not None:
            self._handle.update(self._html(self._drawn()))

    def _drawn(self) -> str:
        done, words = self._last
        seconds = time.monotonic() - self._began
        left = seconds / (done - self._first) * (self._rounds - done) if done > self._first else None
        said = [f"{done} of {self._rounds} rounds", words, "" if not left else f"{time_in_words(left)} left"]
        text = html.escape(" · ".join(filter(None, said)))
        bar = f'<progress value="{done}" max="{self._rounds}" style="vertical-align: middle"></progress>'
        return f"<div>{html.escape(self._heading)}<br>{bar} {text}</div>"


def time_in_words(seconds: float) -> str:
    """Returns a time in words: 0.12 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
