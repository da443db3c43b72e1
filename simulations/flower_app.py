"""What `flwr run` starts: a run's cloud (ServerApp), and its nodes (ClientApp)."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fsl.deployment.nodes import NodeHost

server = ServerApp()
client = ClientApp()
_host = NodeHost()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration's `overrides` say, on the nodes of this Grid."""
    from fsl.simulations.cloud import run

    run(grid, str(context.run_config.get("overrides", "")))


@client.query()
def query(message: Message, context: Context) -> Message:
    """What this node hosts."""
    return _host.query(message, context)


@client.train()
def train(message: Message, context: Context) -> Message:
    """This node's part of a round."""
    return _host.train(message, context)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Private fronts on the test set."""
    return _host.evaluate(message, context)
