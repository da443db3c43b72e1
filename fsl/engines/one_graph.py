"""Trains a device's front and its replica of the back in one graph: one backward pass, and not a message."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fsl.engines.stack import NotStackedError
from fsl.engines.step_bytes import StepBytes
from fsl.errors import NO_GRADIENT, FslError, LostError, SplitError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.round.cohort import Cohort, StepWatcher, stepping
from fsl.round.front_device import Device
from fsl.round.sessions import Batch
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.finite import REFUSED, doubtful, finite_state, usable
from fsl.segments.states import State
from fsl.segments.step_control import StepControl
from fsl.trainers import Replicated


class OneGraphCohort(Cohort):
    """Devices with a back of their own, whose two segments run behind each other in one graph.

    The values are those of the loop to the bit: the same operations on the same numbers, and the cut gradient is what
    autograd hands from the back to the front. What the loop looks at in each step is looked at once a round: a device
    whose loss was not finite in some step, or beyond the limit, is lost all the same.
    """

    def __init__(self, task: CohortTask, plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        super().__init__(task, plan, worker, states)
        assert isinstance(self.edge.trainer, Replicated)
        self._trainer = self.edge.trainer
        self._bytes = StepBytes()
        self._plain = plain_sgd(plan.optimizer, plan.control) and worker.accelerator.type == "cpu"

    def _train(self, devices: list[Device]) -> dict[int, str]:
        lost: dict[int, str] = {}
        with stepping(self.plan) as at:
            for device in devices:
                try:
                    self._train_one(device, at)
                except LostError as error:
                    lost[device.device] = lost_reason(self.plan, error.reason)
                    self.edge.lose(device.device)
        return lost

    def _train_one(self, device: Device, at: StepWatcher) -> None:
        """Run a device's steps; what fails after its work became unusable, in which the loop would end, counts not."""
        losses: list[Tensor] = []
        try:
            self.train_one(device, at, losses)
        except FslError:
            raise
        except Exception:
            limit = self._trainer.bench.loss_limit
            states = device.bench.front.state(), self._trainer.replica(device.device)[0].state()
            if limit is None or (usable(losses, (), limit) and all(map(finite_state, states))):
                raise
            raise LostError(device.device, REFUSED) from None

    def train_one(self, device: Device, at: StepWatcher, losses: list[Tensor]) -> None:
        """Run a device's steps and note their `losses`; LostError where its work is unusable."""
        bench = device.bench
        front, (back, back_seeds) = bench.front, self._trainer.replica(device.device)
        objective, front_seeds = self._trainer.bench.objective, bench.layer_seeds
        parameters = [(one, one.data, -learner.rate) for learner in (front, back) for one in learner.replica.parameters]
        batches: list[Batch] = []
        up = down = values = 0
        for step, (inputs, targets) in enumerate(bench.batches):
            at(device.device, step)
            smashed = front.forward(inputs, front_seeds.at(step))
            loss = objective.loss(back.forward(smashed, back_seeds.at(step)), targets)
            loss.backward()
            if smashed.requires_grad and all(p.grad is None for p in front.replica.parameters):
                raise SplitError(f"in this step {NO_GRADIENT}")
            if self._plain:
                _step_plainly(parameters)
            else:
                front.step(step)
                back.step(step, device=device.device)
            losses.append(loss.detach())
            batches.append(Batch(len(targets), objective.weight(targets)))
            sent = self._bytes.of(smashed, targets)
            up, down, values = up + sent.up, down + sent.down, values + sent.values
        limit = self._trainer.bench.loss_limit
        if not usable(losses, (), limit):
            raise LostError(device.device, REFUSED)
        if doubtful(losses, limit):
            raise NotStackedError("losses are so large that each step's gradients must be looked at")
        self.edge.note_steps(device.device, losses, batches, up, down, values)


def plain_sgd(optimizer: Spec, control: StepControl) -> bool:
    """Returns whether a step is w - rate * gradient, and nothing else."""
    plain = not control.clip_norms and control.accumulate == 1 and control.pace is None
    return (
        plain
        and control.precision == "float32"
        and optimizer.target == "torch.optim.SGD"
        and not any(optimizer.kwargs.values())
    )


def _step_plainly(parameters: Sequence[tuple[nn.Parameter, Tensor, float]]) -> None:
    """Step both segments as `torch.optim.SGD` does, to the bit, without its calls for each of them."""
    for parameter, values, less_rate in parameters:
        if parameter.grad is not None:
            values.add_(parameter.grad, alpha=less_rate)
            parameter.grad = None
