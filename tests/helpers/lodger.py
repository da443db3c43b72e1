"""A resident process without a model: it answers with what it is told to do, and keeps a note of its end."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fsl.deployment.node.resident_process import live


class Host:
    """Answers who it is; the kind of a message says what else it does."""

    def answer(self, kind: str, node: int, content: RecordDict, node_config: dict[str, Any]) -> RecordDict:
        state = Path(node_config["state"])
        if kind == "long":
            (state / "at work").touch()
            while not (state / "go on").exists():
                time.sleep(0.02)
        if kind == "crash":
            os._exit(9)
        if kind == "fail":
            raise ValueError("two\nlines")
        return RecordDict({"c": ConfigRecord({"pid": os.getpid(), "node": node})})

    def close(self) -> None:
        (Path(sys.argv[2]) / "closed").touch()


if __name__ == "__main__":
    live(sys.argv[1:], Host)
