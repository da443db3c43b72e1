"""The server above one edge in one round: it trains the top by the plan's trainer, as the edge trains the back."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from fsl.codecs.codec_maker import codec_maker
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.round.batches import batches_in_round
from fsl.round.edge_server import EdgeServer
from fsl.round.kept_states import keep, load_kept, new_total
from fsl.round.round_privacy import lender
from fsl.round.step_rules import lend_by, objective_of, step_rule
from fsl.round.unusable import limit_of
from fsl.round.upper_server import UpperServer, hop_draws
from fsl.round.workload import Worker
from fsl.segments.learner import Learner
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.split.placing import TOP
from fsl.trainers import EdgeBench, EdgeTrainer


def upper_server(task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]) -> UpperServer:
    """Build the server above an edge, with a trainer of its own of the edge's kind; its round has begun."""
    assert plan.trainer is not None
    allowed = worker.workload.allowed
    up, down = (codec_maker(spec, allowed) for spec in (plan.up, plan.down))
    trainer: EdgeTrainer = plan.trainer.build(allowed, EdgeTrainer)
    checked = limit_of(worker, plan, TOP) is not None
    shared = worker.segments["back"].shared
    server = EdgeServer(
        task.edge,
        trainer,
        up,
        down,
        checked=checked,
        allowed=allowed,
        shared=lambda _: shared,
        tells=True,
        draws=hop_draws(plan.seed, plan.round),
    )
    tasks = {device.device: device for device in task.devices}

    def owner_task(owner: str) -> DeviceTask | CohortTask:
        kind, _, number = owner.partition("-")
        return tasks[int(number)] if kind == "device" else task

    def kept(owner: str) -> Mapping[str, Tensor] | None:
        return load_kept(worker, plan, f"tops/{owner}", owner_task(owner))

    def keep_it(owner: str, learner: Learner) -> None:
        keep(worker, plan, f"tops/{owner}", learner, owner_task(owner))

    most = 0.0  # n_k of the device with the most samples, when the top was first stepped: as at the edge

    def batches(device: int | None) -> int:
        nonlocal most
        if device is None:
            most = most or server.most_samples()
        samples = most if device is None else server.session(device).weight
        return batches_in_round(int(samples), plan, worker.skip_single)

    segment, rule = worker.segments[TOP], step_rule(plan, TOP, worker, batches)
    bench = EdgeBench(
        seed=plan.seed,
        round=plan.round,
        back=segment,
        objective=objective_of(plan, worker.workload.objective, worker.accelerator),
        optimizer=OptimizerRecipe(plan.optimizer, allowed),
        learning_rate=plan.learning_rates[TOP],
        kept=kept,
        keep=keep_it,
        total=partial(new_total, segment.layout, plan),
        lender=lend_by(rule, lender(plan, TOP, worker.workload, task.edge)),
        loss_limit=limit_of(worker, plan, TOP),
    )
    server.begin(bench, states[TOP])
    return UpperServer(server, up, down, allowed, kept=not plan.reset_optimizer, draws=hop_draws(plan.seed, plan.round))
