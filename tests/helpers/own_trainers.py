"""Edge trainers that remember something from round to round, and strategies that use them."""

import torch
from fsl.strategies import SplitStrategy

from fsl.importing.spec import Spec
from fsl.trainers import Pooled, Replicated
from fsl.trainers.sequential import Sequential


class Replay(Pooled):
    """As Pooled; before each step the back is trained once on what the edge got last, also in the round before."""

    keeps = True

    def __init__(self, rows: int = 20):
        super().__init__()
        self.rows = rows

    def begin(self, bench, edge, back):
        super().begin(bench, edge, back)
        self.features = self.targets = None

    def restore(self, kept, device=None):
        self.features, self.targets = kept["features"], kept["targets"]

    def kept(self, device=None):
        return {} if self.features is None else {"features": self.features, "targets": self.targets}

    def step(self, messages):
        if self.features is not None:
            layer_seed = self.bench.pooled_layer_seeds(self.edge).at(10**6 + messages[0].step)
            self.bench.objective.loss(self.learner.forward(self.features, layer_seed), self.targets).backward()
            self.learner.step()
        self.features = torch.cat([m.smashed.detach() for m in messages])[: self.rows].clone()
        self.targets = torch.cat([m.targets for m in messages])[: self.rows].clone()
        return super().step(messages)


class Counting(Replicated):
    """As Replicated; a device's steps are counted over all rounds, and its replica's rate falls by them."""

    keeps = True

    def begin(self, bench, edge, back):
        super().begin(bench, edge, back)
        self.steps = {}

    def open(self, device, weight):
        super().open(device, weight)
        self.steps[device] = torch.zeros((), dtype=torch.int64)

    def restore(self, kept, device=None):
        self.steps[device] = kept["steps"]

    def kept(self, device=None):
        return {"steps": self.steps[device]}

    def step(self, messages):
        for message in messages:
            self.steps[message.device] += 1
            rate = self.bench.learning_rate / (1 + int(self.steps[message.device]))
            for group in self._replicas[message.device].learner.optimizer.param_groups:
                group["lr"] = rate
        return super().step(messages)


class _OfNobody:
    """A learner whose steps name no device."""

    def __init__(self, learner):
        self._learner = learner

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def step(self, number, device):
        self._learner.step(number)


class Together(Sequential):
    """As Sequential; its rate by step is that of whichever device of the edge has most batches."""

    def train_on(self, upload, layer_seed):
        mine, self.learner = self.learner, _OfNobody(self.learner)
        try:
            return super().train_on(upload, layer_seed)
        finally:
            self.learner = mine


class Within(Replay):
    """As Replay, and each round begins with nothing."""

    keeps = False


class Silent(Replay):
    """Says that it keeps something, and hands over no tensors."""

    def kept(self, device=None):
        return {"features": 3}


def by(trainer):
    """A strategy that averages fronts and trains backs by this trainer."""

    class Own(SplitStrategy):
        def trainer(self, round):
            return Spec(self.path(trainer))

    return Own()


class Now(SplitStrategy):
    """Replays in odd rounds only."""

    def trainer(self, round):
        return Spec(self.path(Replay if round % 2 else Pooled))
