"""Checks a device's messages before they reach a trainer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fsl.errors import WireError
from fsl.messages.frames import check_finite, check_labels
from fsl.messages.round_plan import DeviceTask, RoundPlan
from fsl.round.workload import Worker
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.precision import computing
from fsl.segments.structures import at_rows
from fsl.segments.tensor_trees import TensorTree, Values, activations_of, received, tensors_of
from fsl.split.placing import TOP
from fsl.trainers.uploads import Upload

_HEADERS = 64 << 10  # bytes of a frame before its tensors, at most
_CODECS = 4  # times the tensors' own bytes, at most


@dataclass(frozen=True)
class Expected:
    """What an edge expects of uploads: smashed data like `smashed`, of other rows, and targets (rows, *target_shape).

    `joint`: front and back share one clip, so that an upload brings the clip factors of the step before. `whole`: the
    norm to which privacy clips a device's whole update, of which the device names its part; None where it does not.
    """

    smashed: Values  # of two blank inputs
    rows: range
    classes: int | None  # None: targets are no class labels
    target_shape: tuple[int, ...] = ()
    target_dtype: torch.dtype = torch.int64
    ignored: int | None = None  # the label that stands for none
    joint: bool = False
    whole: float | None = None
    private: bool = False  # error messages name the kind of failure alone
    relayed: int = 0  # bytes of the fronts that a device passes on when it closes
    tails: bool = False  # labels stay on devices
    outputs: int = 0  # bytes of one row of the back's outputs, whose gradient a tail sends
    three: str = ""  # the structure of smashed data of three blank inputs, where there are several
    by_device: Mapping[int, "Expected"] = field(default_factory=dict)  # of devices that are cut elsewhere
    shortest: Values | None = None  # of two blank inputs of the least length, where batches have lengths of their own

    @property
    def frame_bytes(self) -> int:
        """Returns the size in bytes of the largest frame that a session of this round has reason to send.

        A codec may take more than the tensors themselves, values with their places say; four times is beyond that.
        """
        return max([self._frame_bytes(), *(other._frame_bytes() for other in self.by_device.values())])

    @property
    def tensor_bytes(self) -> int:
        """Returns the size in bytes of the largest tensor that a session of this round has reason to upload.

        Small payloads may stand for large tensors, and an edge decodes none that is larger.
        """
        own = (self.rows.stop - 1) * max(-(-tensor.nbytes // 2) for tensor in tensors_of(self.smashed))
        return max([own, *(other.tensor_bytes for other in self.by_device.values())])

    def _frame_bytes(self) -> int:
        rows = self.rows.stop - 1
        smashed = sum(tensor.nbytes for tensor in tensors_of(self.smashed)) / 2
        tensors = math.ceil(smashed) + math.prod(self.target_shape) * self.target_dtype.itemsize
        return _HEADERS + max(_CODECS * rows * (max(tensors, self.outputs) + 4), 2 * self.relayed)  # 4: a clip factor

    @staticmethod
    def of_edge(worker: Worker, plan: RoundPlan) -> "Expected":
        """Derive what an edge uploads to the server above it: what the back makes of smashed data, and labels."""
        return Expected.of(worker, plan, ("front", "back"))

    @staticmethod
    def of_devices(worker: Worker, plan: RoundPlan, tasks: Iterable[DeviceTask]) -> "Expected":
        """Derive what each of these devices uploads, cut where the plan cuts it."""
        cuts = {task.device: task.cut for task in tasks}
        at = {cut: Expected.of(worker.at(cut), plan) for cut in sorted({0, *cuts.values()})}
        return replace(at[0], by_device={device: at[cut] for device, cut in cuts.items() if cut})

    @staticmethod
    def of(worker: Worker, plan: RoundPlan, below: Sequence[str] = ("front",)) -> "Expected":
        """Derive what devices of this round upload, by running the front on two blank inputs.

        `below`: the segments that run before what is uploaded.
        """
        segments = [worker.segments[name] for name in below]
        lowered = partial(computing, plan.control.precision, worker.accelerator)

        def passed(inputs: Any) -> Values:
            values: Any = inputs.to(worker.accelerator)
            for segment in segments:
                values = received(call(segment.module, values), segment.shared)
            found: Values = values
            return found

        with ExitStack() as stack:  # with gradients, which tell activations from masks
            for segment in segments:
                stack.enter_context(evaluating(segment.module))
            stack.enter_context(lowered())
            smashed = passed(worker.workload.data.blank(2)).detach()
            more = passed(worker.workload.data.blank(3))
            least = getattr(worker.workload.data.train, "shortest", lambda rows: None)(2)
            shortest = None if least is None else passed(least).detach()
        three = more.structure if isinstance(more, TensorTree) else ""
        outputs = 0
        if tails := "tail" in worker.chain:
            back = worker.segments["back"].module
            with evaluating(back), torch.no_grad(), lowered():
                outputs = sum(t.nbytes for t in tensors_of(received(call(back, smashed)))) // 2
        rows = range(2 if worker.skip_single else 1, plan.batch_size + 1)
        targets, objective = worker.workload.data.train.targets, worker.workload.objective
        kind = (tuple(targets.shape[1:]), targets.dtype, objective.ignored if objective.ignores else None)
        fronts = [
            s.layout.bytes + 200 * len(s.layout.fields)
            for name, s in worker.segments.items()
            if name not in ("back", TOP)
        ]
        relayed = sum(fronts) if plan.fronts == "relayed" else 0
        expected = Expected(
            smashed,
            rows,
            worker.workload.data.classes,
            *kind,
            relayed=relayed,
            tails=tails,
            outputs=outputs,
            three=three,
            shortest=shortest,
        )
        if (privacy := plan.privacy) is None:
            return expected
        whole = None if privacy.client is None else privacy.client.clip
        if privacy.poisson:  # a Poisson batch may have no row, or many; no honest draw exceeds this
            expected = replace(expected, rows=range(10 * (plan.batch_size + 10) + 1))
        return replace(expected, joint=privacy.joint, whole=whole, private=privacy.private)

    def check(self, upload: Upload) -> None:
        """Raise WireError for an upload that no device of this round makes."""
        if (other := self.by_device.get(upload.device)) is not None:
            other.check(upload)
            return
        smashed, targets = upload.smashed, upload.targets
        self._check_kind(smashed)
        if len(smashed) not in self.rows:
            raise WireError(f"an upload of {len(smashed)} rows; {self.rows.start} to {self.rows.stop - 1} are allowed")
        labelled = not self.tails
        if labelled and (targets.dim() < 1 or len(targets) != len(smashed) or targets.shape[1:] != self.target_shape):
            raise WireError(f"targets of shape {tuple(targets.shape)} came with {len(smashed)} rows")
        for tensor in activations_of(smashed):
            check_finite("smashed data", tensor)
        for tensor in tensors_of(smashed):
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise WireError("smashed data have a value that is not a number; the sender's training has diverged")
        if not labelled:
            return
        if self.classes is not None and not self.target_dtype.is_floating_point:
            told = targets.flatten()
            check_labels(told if self.ignored is None else told[told != self.ignored], self.classes)
        else:
            check_finite("targets", targets)
        if targets.dtype != self.target_dtype:
            raise WireError(f"targets are {targets.dtype}, this run's {self.target_dtype}")

    def _check_kind(self, smashed: Values) -> None:
        """Raise WireError where smashed data are not of the structure, dtypes and shapes that this cut gives."""
        wanted = self._at_length(smashed)
        if isinstance(smashed, Tensor) and isinstance(wanted, Tensor):
            self._check_tensor("smashed data", smashed, wanted, shared=False)
        elif isinstance(smashed, TensorTree) and isinstance(wanted, TensorTree):
            structure = at_rows(wanted.structure, self.three, len(smashed))
            if (smashed.structure, smashed.exact) != (structure, wanted.exact):
                raise WireError("smashed data are of another structure than this cut gives; both ends need one model")
            for place, (tensor, like) in enumerate(zip(smashed.tensors, wanted.tensors, strict=True)):
                self._check_tensor(f"'{wanted.names[place]}' of the smashed data", tensor, like, place in wanted.shared)
            if any(len(t) != len(smashed) for p, t in enumerate(smashed.tensors) if p not in wanted.shared):
                raise WireError("smashed data do not have a row per sample where this cut gives one")
        else:
            sent, gives = ("a tensor" if isinstance(each, Tensor) else "several" for each in (smashed, wanted))
            raise WireError(f"smashed data are {sent}; this cut gives {gives}")

    def _at_length(self, smashed: Values) -> Values:
        """Returns what the cut gives for a batch as long as this one, which is the leading tensor's to say.

        Every size that changes with the length does so place by place, and by as many places.
        """
        if self.shortest is None:
            return self.smashed
        longest, shortest = tensors_of(self.smashed), tensors_of(self.shortest)
        places = [
            (one, dim)
            for one, (tall, short) in enumerate(zip(longest, shortest, strict=True))
            for dim in range(1, tall.dim())
            if tall.shape[dim] != short.shape[dim]
        ]
        sent = tensors_of(smashed)
        if not places or len(sent) != len(longest) or sent[places[0][0]].dim() != longest[places[0][0]].dim():
            return self.smashed
        one, dim = places[0]
        size, tall, short = (tensors[one].shape[dim] for tensors in (sent, longest, shortest))
        if not short <= size <= tall:
            return self.smashed
        cut = list(longest)
        for place, along in places:
            cut[place] = cut[place].narrow(along, 0, max(0, cut[place].shape[along] - (tall - size)))
        return cut[0] if isinstance(self.smashed, Tensor) else self.smashed.like(cut)

    def _check_tensor(self, what: str, tensor: Tensor, like: Tensor, shared: bool) -> None:
        shape = tensor.shape if shared else tensor.shape[1:]
        if (
            tensor.dtype != like.dtype
            or tensor.dim() != like.dim()
            or shape != (like.shape if shared else like.shape[1:])
        ):
            rows = ", ".join(map(str, like.shape)) if shared else ", ".join(["rows", *map(str, like.shape[1:])])
            raise WireError(
                f"{what} are {tensor.dtype} of shape {tuple(tensor.shape)}; the cut gives {like.dtype} of shape "
                f"({rows})"
            )

    def check_factors(self, factors: Tensor | None, rows: int | None) -> None:
        """Raise WireError for clip factors that do not fit a step of `rows` rows (None: there was no step)."""
        if not self.joint or rows is None:
            if factors is not None:
                raise WireError("clip factors came where none are asked for")
            return
        if factors is None:
            raise WireError("no clip factors came for the step before, and this round has one clip over front and back")
        if factors.dtype is not torch.float32 or factors.shape != (rows,):
            raise WireError(f"clip factors are {factors.dtype} of shape {tuple(factors.shape)}, of {rows} rows")
        check_finite("a clip factor", factors)
        if rows and not 0 <= float(factors.min()) <= float(factors.max()) <= 1:
            raise WireError("a clip factor is not from 0 to 1")

    def check_update(self, square: float | None) -> None:
        """Raise WireError for a number that is no squared norm of a device's part of its update."""
        if self.whole is None:
            return
        if square is None or not (math.isfinite(square) and square >= 0):
            raise WireError(f"an update's squared norm is {square}; it is a finite number, 0 or above")
