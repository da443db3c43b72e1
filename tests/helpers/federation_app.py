"""A Flower app of few lines, with which to try a federation: its nodes say what they were told."""

from pathlib import Path

PROJECT = """
[project]
name = "few-lines"
version = "1.0.0"
description = "Nodes say what they were told"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "few_lines:server"
clientapp = "few_lines:client"

[tool.flwr.app.config]
overrides = ""
"""

MODULE = """
import json
import shlex
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid, context):
    overrides = dict(text.split("=", 1) for text in shlex.split(context.run_config["overrides"]))
    out = Path(overrides["hydra.run.dir"].strip("'"))
    if overrides.get("seed") == "13":
        raise ValueError("thirteen is no seed")
    if overrides.get("seed") == "14":
        (out / "here").touch()
        while True:
            time.sleep(0.1)
    messages = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
    replies = [dict(reply.content["told"]) for reply in grid.send_and_receive(messages, timeout=60)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "told.json").write_text(json.dumps({"overrides": overrides, "nodes": replies}))
    row = {"round": 1, "train_loss": 0.5, "accuracy": 0.25, "devices": 2}
    (out / "metrics.jsonl").write_text(json.dumps(row) + "\\n")


@client.query()
def query(message, context):
    return Message(RecordDict({"told": ConfigRecord(dict(context.node_config))}), reply_to=message)
"""


def write_app(folder: Path) -> Path:
    """The folder of the app."""
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "few_lines.py").write_text(MODULE)
    return folder
