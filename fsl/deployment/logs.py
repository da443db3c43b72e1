"""Formats the logs of a federation's processes: plain lines, or one JSON object a line with FSL_LOG=json."""

import json
import logging
import os
from datetime import UTC, datetime

from fsl.errors import one_of
from fsl.run.plain_logs import PlainFormatter

FIELDS = ("run", "round", "edge", "device", "peer")  # fields of `extra` that a log line may carry
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """Writes one JSON object a line: time (ISO 8601, UTC), level, logger, message, and the known ones of FIELDS."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as one line."""
        said: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, default=str)


def set_up(level: int = logging.INFO) -> None:
    """Log to standard error in the form that FSL_LOG names; ConfigError for an unknown form."""
    form = one_of("FSL_LOG", os.environ.get("FSL_LOG") or "text", ("text", "json"))
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler])
