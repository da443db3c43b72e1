"""Lines of logs that hold what they say: no control character in a message moves a cursor or forges another line."""

import logging

from fsl.quoting import printable


class PlainFormatter(logging.Formatter):
    """A line for each record, its control characters shown (`\\x1b`); tracebacks keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return super().format(plain(record))

    def formatException(self, ei: object) -> str:  # noqa: N802  logging's name
        """A traceback, whose lines may quote anything."""
        return printable(super().formatException(ei), keep="\n\t")  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:  # noqa: N802  logging's name
        """The lines of a stack."""
        return printable(super().formatStack(stack_info), keep="\n\t")


def plain(record: logging.LogRecord) -> logging.LogRecord:
    """A record whose message is printable: the same one where it is so already, for other handlers get it too."""
    said = record.getMessage()
    shown = printable(said)
    if shown == said and not record.exc_text:
        return record
    copy = logging.makeLogRecord({**record.__dict__, "msg": shown, "args": None, "exc_text": None})
    if record.exc_text and not record.exc_info:
        copy.exc_text = printable(record.exc_text, keep="\n\t")
    return copy
