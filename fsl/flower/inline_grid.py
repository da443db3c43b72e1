"""A Grid that calls the ClientApp in this process: the default, and the oracle for the others."""

from flwr.app import Message

from fsl.flower.internals import AppFactory, SimulationGrid, node_context


class InlineGrid(SimulationGrid):
    """Runs every node in this process, one after another; a node's exception reaches the caller as it is."""

    def __init__(self, make_app: AppFactory, nodes: int = 1):
        super().__init__(nodes)
        self._apps = {node: make_app() for node in self._node_ids}
        self._contexts = {node: node_context(self.run_id, node) for node in self._node_ids}

    def answer(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Call each message's node, one after another."""
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            replies.append(self._apps[node](message, self._contexts[node]))
        return replies
