"""What an upload must be before it reaches a trainer."""

from dataclasses import dataclass

import torch

from fsl.errors import WireError
from fsl.messages import Upload
from fsl.plan import RoundPlan
from fsl.wire.format import check_finite, check_labels
from fsl.workload import Worker


@dataclass(frozen=True)
class Expected:
    """Smashed data (rows, *shape) of a dtype, with as many targets."""

    shape: torch.Size
    dtype: torch.dtype
    rows: range
    classes: int | None  # None: targets are no class labels

    @staticmethod
    def of(worker: Worker, plan: RoundPlan) -> "Expected":
        """What devices of this round upload: the shape is that of the front's output on two blank inputs."""
        front = worker.segments["front"].module
        training = front.training
        with torch.no_grad():
            data = worker.workload.data
            blank = torch.zeros(2, *data.input_shape, dtype=data.input_dtype, device=worker.accelerator)
            smashed = front.eval()(blank)
        front.train(training)
        rows = range(2 if worker.skip_single else 1, plan.batch_size + 1)
        return Expected(smashed.shape[1:], smashed.dtype, rows, worker.workload.data.classes)

    def check(self, upload: Upload) -> None:
        """WireError for an upload that no device of this round makes."""
        smashed, targets = upload.smashed, upload.targets
        if smashed.shape[1:] != self.shape or smashed.dim() != 1 + len(self.shape) or smashed.dtype != self.dtype:
            raise WireError(
                f"smashed data are {smashed.dtype} of shape {tuple(smashed.shape)}; the cut gives {self.dtype} of "
                f"shape (rows, {', '.join(map(str, self.shape))})"
            )
        if len(smashed) not in self.rows:
            raise WireError(f"an upload of {len(smashed)} rows; {self.rows.start} to {self.rows.stop - 1} are allowed")
        if targets.dim() < 1 or len(targets) != len(smashed):
            raise WireError(f"targets of shape {tuple(targets.shape)} came with {len(smashed)} rows")
        check_finite("smashed data", smashed)
        if self.classes is not None:
            check_labels(targets, self.classes)
        else:
            check_finite("targets", targets)
