"""What is refused of a run's precision before its first round."""

import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError
from fsl.faults import trying
from fsl.objective.in_precision import InPrecision
from fsl.round.workload import Worker, copied
from fsl.segments.calling import outputs_of
from fsl.segments.precision import Precision, computing, refuse_precision
from fsl.segments.tensor_trees import Values

_ROWS = 2


def check_precision_of(worker: Worker, precision: Precision, *, here: bool) -> None:
    """ConfigError for a precision in which this model, or (`here`) this machine, does not train."""
    if precision == "float32":
        return
    wide = next((n for n, p in worker.model.named_parameters() if p.dtype != torch.float32), None)
    if wide is not None:
        kind = str(worker.model.get_parameter(wide).dtype).removeprefix("torch.")
        raise ConfigError(
            f"precision={precision}: the weights are to be float32, of which a step computes in fewer digits, and "
            f"'{wide}' is {kind}; use model.float(), or precision=float32"
        )
    if here:
        refuse_precision(precision, worker.accelerator)
    elif precision == "float16" and worker.accelerator.type != "cuda":
        return  # the nodes have other machines
    examples, rows = worker.workload.data.train, torch.arange(min(_ROWS, len(worker.workload.data.train)))
    with seeds.left_as_found():
        inputs, targets = examples.batch(rows)
        _try(worker, precision, inputs.to(worker.accelerator), targets.to(worker.accelerator))


def _try(worker: Worker, precision: Precision, inputs: Values, targets: Tensor) -> None:
    model = copied(worker.model).eval()
    objective = InPrecision(worker.workload.objective, precision, worker.accelerator)
    with trying(f"precision={precision}: a batch does not go through the model, which does in float32"):
        with computing(precision, worker.accelerator):
            outputs = outputs_of(model, inputs)
        objective.loss(outputs, targets).backward()
