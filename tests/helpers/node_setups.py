"""What nodes are configured with, and what a cloud sends them."""

from pathlib import Path

from fsl.simulations.flower_cloud import composed

from fsl.deployment.node.setup import Setup
from fsl.run.config import build_data, read_config
from fsl.wire.options import Patience

DEVICE = {"role": "device", "devices": "0,2-3", "key": "k", "state": "s", "ca": "ca.pem"}
EDGE = {"role": "edge", "edge": 1, "listen": "127.0.0.1:0", "state": "s", "insecure": True}
TOP = {**EDGE, "role": "top"}  # the server above that edge


def setup_of(*overrides, folder="out"):
    config, _ = composed(list(overrides))
    top = read_config(config)
    task, _ = build_data(top.data, top.training.seed)
    return Setup.of(top, task, Path(folder), Patience())
