"""A backend whose nodes have what nodes in processes of their own have: copies, made of bytes."""

from dataclasses import dataclass
from functools import partial

import fsl
from fsl.flower.inline_grid import InlineGrid
from fsl.run.app import workload_app


def copy_of(something):
    """What another process gets of it from Ray."""
    from ray import cloudpickle

    return cloudpickle.loads(cloudpickle.dumps(something))


class CopiedGrid(InlineGrid):
    """Nodes that share nothing but files: each has a copy of its own, and so have messages and replies.

    Each is made anew for each message, as Flower's engine may give a node's next round to another process.
    """

    def __init__(self, make_app, nodes):
        super().__init__(make_app, nodes)
        self._make_app = make_app

    def answer(self, messages, timeout):
        self._apps = {node: copy_of(self._make_app)() for node in self._apps}
        return [copy_of(reply) for reply in super().answer(copy_of(messages), timeout)]


@dataclass(frozen=True)
class Copied(fsl.Backend):
    """All in this process; what processes, and a cluster, do besides is tested in tests/flower/test_grids.py."""

    def open(self, workload, nodes):
        return CopiedGrid(partial(workload_app, workload), nodes)
