"""The app that `flwr run` starts: a run's cloud (ServerApp), and its nodes (ClientApp)."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the run configuration's `overrides` on the nodes of this Grid."""
    from fsl.simulations.flower_cloud import run

    from fsl.segments.uncompiled import leave_out_compiler

    leave_out_compiler()
    run(grid, str(context.run_config.get("overrides", "")))


@client.query()
def query(message: Message, context: Context) -> Message:
    """Answer what this node hosts."""
    return _answer("query", message, context)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train this node's part of a round."""
    return _answer("train", message, context)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score private fronts on the test set."""
    return _answer("evaluate", message, context)


def _answer(kind: str, message: Message, context: Context) -> Message:
    """Answer by the node's resident process where it has a role, else in this process, as Flower's simulation needs."""
    if context.node_config.get("role", "any") != "any":
        from fsl.deployment.node.asking import ask

        answer = ask(kind, context.node_id, context.run_id, message.content, context.node_config)
        return Message(answer, reply_to=message)
    from fsl.deployment.node.node_host import host

    return Message(host().answer(kind, context.node_id, message.content, context.node_config), reply_to=message)
