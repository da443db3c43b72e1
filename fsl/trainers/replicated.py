"""A back per device: SplitFed V1 and V3."""

from collections.abc import Sequence
from dataclasses import dataclass

from fsl import seeds
from fsl.segments.finite import refuse_states
from fsl.segments.learner import Learner
from fsl.segments.states import State
from fsl.segments.sums import Total
from fsl.trainers.back_steps import train_back
from fsl.trainers.edge_trainer import EdgeBench, EdgeTrainer, Snapshot
from fsl.trainers.uploads import Reply, Upload


@dataclass(frozen=True, slots=True)
class _Replica:
    learner: Learner
    layer_seeds: seeds.Stream
    weight: float


class Replicated(EdgeTrainer):
    """A back per device, trained on that device's uploads; replicas are averaged with weights n_k/n.

    SplitFed V1 (Thapa et al., AAAI 2022, Algorithm 1) and V3 (Gawali et al. 2020).
    """

    divisible = True
    movable = True
    tails = True
    accumulates = True
    hops = True

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round: no device has a replica yet."""
        super().begin(bench, edge, back)
        self._total = bench.total()
        self._replicas: dict[int, _Replica] = {}

    def open(self, device: int, weight: float) -> None:
        """Give the device a replica of the back."""
        bench = self.bench
        learner = bench.borrow(device)
        learner.begin(self.back, bench.learning_rate, bench.kept(f"device-{device}"))
        self._replicas[device] = _Replica(learner, bench.layer_seeds(device), weight)

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Train each device's own replica on its upload (Algorithm 1, the server's part, for all clients in parallel).

        For client k: forward with its smashed data A_k on its replica of W^S, loss of the outputs and its labels Y_k,
        backward, a step of the replica, and dA_k back to the client.
        """
        bench, replies = self.bench, []
        for upload in messages:
            replica = self._replicas[upload.device]
            layer_seed = replica.layer_seeds.at(upload.step)
            reply = train_back(replica.learner, bench.objective, upload, layer_seed, self.answers, bench.loss_limit)
            replies.append(reply)
        return replies

    def replica(self, device: int) -> tuple[Learner, seeds.Stream]:
        """Returns a device's replica, and the seeds of its random layers."""
        replica = self._replicas[device]
        return replica.learner, replica.layer_seeds

    def update(self, device: int) -> tuple[State, State]:
        """The back that the device started from, and its replica."""
        return self.back, self._replicas[device].learner.state()

    def close(self, device: int) -> None:
        """Add the device's replica to the average; LostError where it cannot be."""
        replica = self._replicas[device]
        refuse_states(device, {"back": replica.learner.state()})
        self.bench.keep(f"device-{device}", replica.learner)
        self._total.add(replica.learner.state(), replica.weight, device)
        self.bench.back.give_back(self._replicas.pop(device).learner)

    def abandon(self, device: int) -> None:
        """Drop the device's replica."""
        self.bench.back.give_back(self._replicas.pop(device).learner)

    def result(self) -> Total:
        """The sum of n_k * replica."""
        return self._total

    def snapshot(self, device: int) -> Snapshot:
        """The device's replica and its optimizer's state."""
        replica = self._replicas[device]
        learner = replica.learner
        return Snapshot(learner.state().clone(), learner.optimizer_state(), replica.weight, learner.transients())

    def adopt(self, device: int, snapshot: Snapshot) -> None:
        """Go on with a replica that another edge trained so far."""
        assert snapshot.back is not None
        bench = self.bench
        learner = bench.borrow(device)
        learner.begin(snapshot.back, bench.learning_rate, snapshot.optimizer, snapshot.transients)
        self._replicas[device] = _Replica(learner, bench.layer_seeds(device), snapshot.weight)
