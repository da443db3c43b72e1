"""A linear layer with weights of its own for each device of a stack, which nobody forms before the round ends."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsl.engines.row_buffer import RowBuffer, merge_equal
from fsl.engines.sgd_history import SgdHistory
from fsl.engines.stack import NotStackedError
from fsl.round.low_rank_update import LayerRows, joined

_HUGE = 1e15  # squares of what is larger may overflow in float32


class LowRankLinear(nn.Module):
    """Stands in for an `nn.Linear` on the rows of several devices, device after device.

    After steps of SGD a device's weights are those at the beginning, W_0 (out, in), less what each step's gradient
    counts, and that gradient is g_s^T x_s of the step's few inputs x_s (R, in) and gradients at the outputs g_s
    (R, out). So x W^T = x W_0^T - sum over s of count_s * (x x_s^T) g_s: a product with W_0 over the rows of all
    devices, and small ones for each. The sum of all devices' weights is one product as well (`change`).
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.ins, self.outs, self.biased = linear.in_features, linear.out_features, linear.bias is not None
        self._start = linear.weight.detach()  # (out, in), or (D, out, in) where devices begin apart
        self._start_bias: Tensor | None = None
        self._history = SgdHistory()
        self._devices = self._live = 1  # of the stack; of these, how many have a step now
        self._anchor = torch.zeros((), requires_grad=True)  # so that a first layer hears of its gradient
        self._past = RowBuffer(self.ins, self.outs)  # rows of earlier rounds, which count what the start counts
        self._new = RowBuffer(self.ins, self.outs)  # of the steps of this round
        self._steps: list[int] = []  # rows of a device in each step done
        self._now = 0  # the same in the present step
        self._counts = torch.empty(0)  # what each row of this round counts, (rows,)
        self.passes = 0, 0  # forward and backward, in the present step
        self._ended: list[tuple[int, float, Tensor]] = []  # first device that had no more steps; start, counts then

    def begin(
        self,
        weight: Tensor,
        bias: Tensor | None,
        history: SgdHistory,
        devices: int,
        rows: int,
        changes: Sequence[LayerRows | None] = (),
    ) -> None:
        """Start a round of so many devices at these weights; `rows`: of a device in all its steps.

        `history` is counted by the stack, for all its layers. `changes`: how each device has left `weight` before.
        """
        self._start, self._start_bias, self._history = weight, bias, history
        self._devices = self._live = devices
        self._steps, self._now, self._ended, self.passes = [], 0, [], (0, 0)
        if self._anchor.device != weight.device:
            self._anchor = torch.zeros((), requires_grad=True, device=weight.device)
        self._new.begin(devices, rows, weight)
        self._counts = self._counted()
        before = max((len(one.inputs) for one in changes if one), default=0)
        self._past.begin(devices, before, weight)
        self._past.rows = before
        inputs, gradients = self._past.inputs, self._past.gradients
        for place, one in enumerate(changes):
            used = 0 if one is None else len(one.inputs)
            if one is not None:
                inputs[place, :used], gradients[place, :used] = one.inputs, one.gradients
            if used < before:
                inputs[place, used:] = gradients[place, used:] = 0.0

    def forward(self, values: Tensor) -> Tensor:
        """Returns the outputs (D * R, ..., out) for inputs (D * R, ..., in) of the devices that have a step."""
        outputs: Tensor = _WithHistory.apply(values, self._anchor, self)
        return outputs

    def outputs(self, values: Tensor) -> Tensor:
        """Computes the outputs, and keeps the inputs."""
        rows = values.reshape(self._live, -1, self.ins)
        self._now = rows.shape[1]
        self.passes = self.passes[0] + 1, self.passes[1]
        if self._start.dim() == 2:
            outputs = nn.functional.linear(values, self._start, self._start_bias)
        else:
            outputs = values.new_empty(*values.shape[:-1], self.outs)
        found = outputs.view(self._live, -1, self.outs)  # a layer behind may write into outputs, which are no view
        if self._start.dim() == 3:
            torch.bmm(rows, self._start[: self._live].transpose(1, 2), out=found)
            if self._start_bias is not None:
                found += self._start_bias[: self._live, None]
        if self._history.start != 1.0:
            found *= self._history.start
        for inputs, gradients, counts in self._before():
            shares = torch.bmm(rows, inputs.transpose(1, 2))
            if self.biased:
                shares += 1.0
            found.baddbmm_(shares.mul_(counts), gradients, alpha=-1.0)
        self._new.make_room(self._now)
        self._new.put(rows, None)
        return outputs

    def hear(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        """Keeps the gradient at the outputs; returns that at the inputs, where it is `wanted`."""
        rows = gradient.reshape(self._live, -1, self.outs)
        found = None
        self.passes = self.passes[0], self.passes[1] + 1
        if wanted:
            shared = self._start.dim() == 2
            found = rows @ self._start if shared else torch.bmm(rows, self._start[: self._live])
            if self._history.start != 1.0:
                found *= self._history.start
            for inputs, gradients, counts in self._before():
                shares = torch.bmm(rows, gradients.transpose(1, 2))
                found.baddbmm_(shares.mul_(counts), inputs, alpha=-1.0)
            found = found.view(*gradient.shape[:-1], self.ins)
        self._new.put(None, rows)
        return found

    def _before(self) -> Iterator[tuple[Tensor, Tensor, Tensor | float]]:
        """Returns inputs and gradients of the live devices' rows before the present step, and what these count."""
        counts: list[Tensor | float] = [self._history.start, self._counts]
        for rows, count in zip((self._past, self._new), counts):
            if rows.rows:
                yield rows.inputs[: self._live], rows.gradients[: self._live], count

    def stepped(self) -> None:
        """Take the present step for one of the past."""
        self._steps.append(self._now)
        self._new.rows += self._now
        self._counts = self._counted()
        self.passes = 0, 0

    def leave(self, live: int) -> None:
        """Go on with the first `live` devices: the others have no more steps."""
        if live < self._live:
            # What an earlier round left behind it, in the place of the others, counts for nothing.
            self._new.clear(slice(live, self._live))
            self._ended.append((live, self._history.start, self._counts))
        self._live = live

    def change(self, shares: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns, of weight and bias, the sum over devices of share (D,) times what its history counts."""
        weight = self._start.new_zeros(self.outs, self.ins)
        bias = self._start.new_zeros(self.outs) if self.biased else None
        for rows, counts in zip((self._past, self._new), self._all_counts()):
            if not rows.rows:
                continue
            scaled = rows.gradients * (shares[:, None] * counts.double()).to(weight)[..., None]
            weight.addmm_(scaled.reshape(-1, self.outs).t(), rows.inputs.reshape(-1, self.ins))
            if bias is not None:
                bias += scaled.sum((0, 1))
        return weight, bias

    def starts(self) -> Tensor:
        """Returns what the weights at the beginning count in each device's weights now, (D,) in float64."""
        starts = torch.full((self._devices,), self._history.start, dtype=torch.float64, device=self._counts.device)
        last = self._devices
        for first, start, _ in self._ended:
            starts[first:last], last = start, first
        return starts

    def finish(self, weight: Tensor, bias: Tensor | None) -> None:
        """Turn each device's weights at the beginning, (D, out, in) and (D, out), into those now, in place."""
        starts = self.starts().to(weight)
        weight.mul_(starts[:, None, None])
        if bias is not None:
            bias.mul_(starts[:, None])
        for rows, counts in zip((self._past, self._new), self._all_counts()):
            if not rows.rows:
                continue
            scaled = rows.gradients * counts.to(weight)[..., None]
            weight.baddbmm_(scaled.transpose(1, 2), rows.inputs, alpha=-1.0)
            if bias is not None:
                bias.sub_(scaled.sum(1))

    def changes(self) -> list[LayerRows]:
        """Returns each device's change since the weights at the beginning, which must count 1: rows that count.

        Of equal rows of a device there is one.
        """
        past, new = self._past.inputs, self._new.inputs
        scaled = self._new.gradients * self._all_counts()[1][..., None]
        parts = list(zip((past, new), merge_equal(past, self._past.gradients, new, scaled)))
        used = [(gradients != 0.0).any(2) for _, gradients in parts]
        whole, some = [one.all(1).tolist() for one in used], [one.any(1).tolist() for one in used]
        return [
            joined(
                [
                    LayerRows(inputs[place], gradients[place])
                    if whole[part][place]
                    else LayerRows(inputs[place][used[part][place]], gradients[place][used[part][place]])
                    for part, (inputs, gradients) in enumerate(parts)
                    if some[part][place]
                ]
                or [LayerRows(new[place, :0], scaled[place, :0])]
            )
            for place in range(self._devices)
        ]

    def sound(self) -> Tensor:
        """Returns, by device (D,), whether the norms of all that it trained with are finite.

        NotStackedError where they are, and the change of its weights may still be too large.
        """
        norms = [
            [torch.linalg.vector_norm(tensor, dim=(1, 2)) for tensor in (rows.gradients, rows.inputs)]
            for rows in (self._past, self._new)
        ]
        gradients, inputs = (torch.hypot(*pair) for pair in zip(*norms))
        found = gradients.isfinite() & inputs.isfinite()
        if bool((found & (gradients * inputs > _HUGE)).any()):
            raise NotStackedError("gradients are so large that each device's weights must be looked at")
        return found

    def drop(self, devices: Tensor) -> None:
        """Forget what devices, truth values (D,), trained with."""
        self._past.clear(devices)
        self._new.clear(devices)

    def _all_counts(self) -> tuple[Tensor, Tensor]:
        """Returns by device what each row counts: of the past, (D, 1), and of this round, (D, rows)."""
        counts, last = self._counts.repeat(self._devices, 1), self._devices
        for first, _, own in self._ended:
            counts[first:last, : len(own)], last = own, first
        return self.starts()[:, None].to(counts), counts

    def _counted(self) -> Tensor:
        """Returns what each row of this round counts now, (rows,)."""
        counts: list[float] = []
        for count, rows in zip(self._history.counts, self._steps, strict=True):
            counts += [count] * rows
        return torch.tensor(counts, dtype=self._start.dtype, device=self._start.device)


class _WithHistory(torch.autograd.Function):
    """A `LowRankLinear`'s products in both directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, anchor: Tensor, layer: LowRankLinear) -> Tensor:
        ctx.layer = layer
        return layer.outputs(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.layer.hear(gradients[0], ctx.needs_input_grad[0]), None, None
