"""Flower's ClientApp and ServerApp for a run."""

from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fsl.engines import EngineName, Engines
from fsl.errors import WireError
from fsl.messages.record_names import ARRAYS, CONFIG, METRICS, PLAN
from fsl.messages.round_plan import EvaluatePlan, RoundPlan
from fsl.round.node import Node
from fsl.round.workload import Workload


def client_app(build: Callable[[Context], Node]) -> ClientApp:
    """A ClientApp that builds its node at the first message and keeps it for the process's life."""
    nodes: dict[tuple[int, int], Node] = {}
    app = ClientApp()

    def node(context: Context) -> Node:
        key = (context.run_id, context.node_id)
        if key not in nodes:
            nodes[key] = build(context)
        return nodes[key]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        plan = RoundPlan.from_json(_plan_text(message))
        return Message(node(context).train(plan, _arrays(message)), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        plan = EvaluatePlan.from_json(_plan_text(message))
        metrics = node(context).evaluate(plan, _arrays(message))
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    return app


def workload_app(workload: Workload, engine: EngineName = "loop", compiled: bool = False) -> ClientApp:
    """A ClientApp whose nodes work on this workload, and train cohorts by this engine, compiled or not."""
    return client_app(lambda context: Node(workload, Engines(engine, compiled).train))


def server_app(main: Callable[[Grid], None]) -> ServerApp:
    """A ServerApp that runs `main` on whatever Grid it is given."""
    app = ServerApp()

    @app.main()
    def run(grid: Grid, context: Context) -> None:
        main(grid)

    return app


def _plan_text(message: Message) -> str:
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    text = config.get(PLAN)
    if not isinstance(text, str):
        raise WireError("a message has no plan; cloud and node must run the same version of fsl")
    return text


def _arrays(message: Message) -> ArrayRecord:
    return message.content.array_records.get(ARRAYS, ArrayRecord())
