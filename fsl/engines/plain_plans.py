"""Says why a round's plan asks for more than an engine computes: what it names is left to the loop."""

from torch import Tensor

from fsl.codecs.identity import Identity
from fsl.importing.spec import Spec
from fsl.messages.round_plan import RoundPlan
from fsl.round.front_device import Device
from fsl.round.workload import Worker
from fsl.trainers import EdgeTrainer

# Of torch.optim: each element is stepped by its own gradient and history, and what is not finite stays so.
ELEMENTWISE = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop")


def beyond(plan: RoundPlan, worker: Worker) -> str | None:
    """Returns, in words, what of a plan none of the engines computes; None for a plain one."""
    segments = set(plan.learning_rates)
    if plan.privacy is not None:
        return "privacy looks at each step's messages"
    if plan.memory is not None:
        return "memory keeps what a device's own backward pass needs"
    if segments != {"front", "back"}:
        return f"the segments {', '.join(sorted(segments))} are more than a front and a back"
    if plan.device.locate(worker.workload.allowed, Device) is not Device:
        return f"the strategy has a device of its own, {plan.device.target}"
    if worker.workload.cuts:
        return "devices are cut at different places"
    if any(segment.labelled or segment.borrows for segment in worker.segments.values()):
        return "early exits or tied weights tie a segment to the other's step"
    for way, spec in (("up", plan.up), ("down", plan.down)):
        if spec.locate(worker.workload.allowed) is not Identity:
            return f"codec.{way}={name_of(spec)} changes what crosses the cut"
    if optimizer_beyond(plan.optimizer):
        return f"optimizer {plan.optimizer.target} is none of torch.optim's {', '.join(ELEMENTWISE)}"
    return None


def beyond_stacks(plan: RoundPlan, worker: Worker) -> str | None:
    """Returns, in words, what of a plain plan is beyond stacks of devices; None where nothing is."""
    control = plan.control
    if plan.fronts not in ("averaged", "private"):
        return f"fronts are {plan.fronts}"
    if plan.one_by_one:
        return "the aggregator looks at each device's weights"
    if not plan.reset_optimizer:
        return "optimizer.reset=false keeps an optimizer for each device"
    if control.clip_norms or control.accumulate != 1 or control.pace is not None:
        return "training.clip_norm, accumulate and a learning rate by step go by one device's step"
    if control.precision == "float16":
        return "precision=float16 divides each device's gradients by the factor of its loss"
    if any(segment.layout.frozen.tensors for segment in worker.segments.values()):
        return "the model has frozen parameters, which all devices share"
    if not isinstance(worker.workload.data.train.blank(1), Tensor):
        return "inputs are several tensors"
    return None


def trainer_kind(plan: RoundPlan, worker: Worker) -> type[EdgeTrainer] | None:
    """Returns the class of a plan's edge trainer; None where devices train without an edge."""
    if plan.trainer is None:
        return None
    kind: type[EdgeTrainer] = plan.trainer.locate(worker.workload.allowed, EdgeTrainer)
    return kind


def optimizer_beyond(spec: Spec) -> bool:
    """Returns whether an optimizer may look beyond the element that it steps."""
    package, _, name = spec.target.rpartition(".")
    return not (package.startswith("torch.optim") and name in ELEMENTWISE)


def name_of(spec: Spec) -> str:
    """Returns a class's name as its user knows it."""
    return spec.target.rpartition(".")[2]
