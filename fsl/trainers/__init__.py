"""Edge trainers: the rule by which an edge turns a step's messages into replies and back updates."""

from fsl.messages.steps import Reply, Upload
from fsl.segments.learner import Learner
from fsl.segments.states import State
from fsl.segments.sums import Total
from fsl.trainers.cyclic import Cyclic
from fsl.trainers.decoupled import Decoupled
from fsl.trainers.edge_trainer import EdgeBench, EdgeTrainer, Snapshot, train_back
from fsl.trainers.pooled import Pooled
from fsl.trainers.replicated import Replicated
from fsl.trainers.sequential import Sequential

__all__ = [
    "Cyclic",
    "Decoupled",
    "EdgeBench",
    "EdgeTrainer",
    "Learner",
    "Pooled",
    "Replicated",
    "Reply",
    "Sequential",
    "Snapshot",
    "State",
    "Total",
    "Upload",
    "train_back",
]
