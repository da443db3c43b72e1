"""Edge trainers: the rule by which an edge turns a step's messages into replies and back updates."""

from fsl.segments.learner import Learner
from fsl.segments.states import State
from fsl.segments.sums import Total
from fsl.trainers.as_they_come import Asynchronous
from fsl.trainers.back_steps import train_back
from fsl.trainers.cyclic import Cyclic
from fsl.trainers.edge_trainer import EdgeBench, EdgeTrainer, Snapshot
from fsl.trainers.fused import Fused
from fsl.trainers.pooled import Pooled
from fsl.trainers.replicated import Replicated
from fsl.trainers.sequential import Sequential
from fsl.trainers.unanswered import Decoupled
from fsl.trainers.uploads import Reply, Upload

__all__ = [
    "Asynchronous",
    "Cyclic",
    "Decoupled",
    "EdgeBench",
    "EdgeTrainer",
    "Fused",
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
