"""A party of vertical split learning on a node of its own, and the edge that fuses what parties send."""

from collections.abc import Mapping, Sequence

import torch

from fsl.errors import ConfigError, TrustError
from fsl.importing.import_paths import path_of
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.quoting import short
from fsl.round.batches import BatchPlan
from fsl.round.edge_side import EdgeSide
from fsl.round.fused_steps import FusedSteps, people_of
from fsl.round.party_side import PartySide, task_of
from fsl.round.scored_parties import ScoredSide, ScoredSteps, ScoredTogether, Scores
from fsl.round.vertical_cohort import with_front
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.expected_parties import expected_of_parties
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.edge.vertical_edge_round import VerticalEdgeRound
from fsl.wire.options import Patience


def the_party(
    tasks: Sequence[DeviceTask], plan: RoundPlan, worker: Worker, states: Mapping[str, State], scores: Scores
) -> PartySide:
    """Returns the side of the one party that a node hosts; ConfigError for several.

    `scores`: where it leaves what its tail finds, in a round in which the model is scored.
    """
    if len(tasks) > 1:
        names = ", ".join(worker.parties[task.device] for task in tasks)
        raise ConfigError(
            f"this node hosts devices {', '.join(str(task.device) for task in tasks)}, which are the parties {names}; "
            "a party has a node of its own: give it one number in devices"
        )
    if scores_parties(plan):
        return ScoredSide(tasks[0], plan, worker, states, scores)
    return PartySide(tasks[0], plan, worker, states)


def vertical_round(
    plan: RoundPlan,
    cohort: CohortTask,
    worker: Worker,
    states: Mapping[str, State],
    admission: Admission,
    patience: Patience,
    meter: EdgeMeter,
) -> VerticalEdgeRound:
    """Build the round of an edge that fuses; ConfigError where parties hold different numbers of people.

    In a round in which the model is scored, a task's `samples` are test people.
    """
    scored = scores_parties(plan)
    counts = {worker.parties[task.device]: task.samples for task in cohort.devices}
    data = task_of(worker)
    if data.label_party is None:
        held = data.test if scored else data.train
        counts["edge"] = 0 if held is None else len(held)
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{party} {count}" for party, count in counts.items())
        raise ConfigError(
            f"parties hold different numbers of {'test ' if scored else ''}people ({told}); align their rows first"
        )
    people = next(iter(counts.values()))
    server = EdgeSide(cohort, plan, with_front(worker), states).server
    expected = expected_of_parties(worker, plan, cohort.devices)
    if not scored:
        steps = FusedSteps(server, worker, people_of(plan, worker, people))
        return VerticalEdgeRound(server, admission, patience, expected, meter, steps=steps)
    assert isinstance(server.trainer, ScoredTogether)
    if "tail" not in worker.chain:
        server.trainer.count(worker.workload.objective, worker.workload.metrics)
    steps = ScoredSteps(server, worker, BatchPlan(torch.arange(people).split(plan.batch_size), 0))
    return VerticalEdgeRound(server, admission, patience, expected, meter, steps=steps, all_or_none=True)


def scores_of(edge_round: VerticalEdgeRound) -> Scores:
    """Returns the scores of a round in which the edge found them; none of any other round."""
    trainer = edge_round.server.trainer
    return trainer.scores() if isinstance(trainer, ScoredTogether) else {}


def scores_parties(plan: RoundPlan) -> bool:
    """Whether a plan is one in which the model of all parties is scored, not trained."""
    return plan.trainer is not None and plan.trainer.target == path_of(ScoredTogether)  # a message's path: not imported


def refuse_sessions(plan: EvaluatePlan, sessions: RoundPlan) -> None:
    """Raise TrustError for sessions of an evaluation that would train, or do what no score takes account of."""
    if not scores_parties(sessions):
        named = "none" if sessions.trainer is None else short(sessions.trainer.target)
        raise TrustError(f"an evaluation asks for sessions of the trainer {named}; in one, parties are scored")
    if (sessions.run, sessions.round) != (plan.run, plan.round):
        raise TrustError("an evaluation's sessions are of another run or round than it is")
    if plan.on != ("test",) or plan.probe is not None:
        raise TrustError("an evaluation of parties is on their own rows, or with a probe; they are scored on test rows")
    if sessions.privacy is not None or sessions.moves or sessions.local_epochs > 1:
        raise TrustError("an evaluation's sessions have privacy, moves or epochs, of which scores take no account")


def refuse_scoring(plan: RoundPlan) -> None:
    """Raise TrustError for a plan of training that would score: its devices' counts are not those of training rows."""
    if scores_parties(plan):
        raise TrustError("a plan of training names the trainer that scores parties; that comes as an evaluation")
