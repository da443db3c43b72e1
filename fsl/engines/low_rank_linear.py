"""A linear layer with weights of its own for each device of a stack, which nobody forms before the round ends."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsl.engines.sgd_history import SgdHistory
from fsl.engines.stack import NotStackedError
from fsl.round.low_rank_update import LayerRows

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
        self._inputs = self._gradients = torch.empty(0, 0, 0)  # (D, rows of all steps, in), (D, ..., out)
        self._before = 0  # rows of a device in earlier rounds
        self._steps: list[int] = []  # the same in each step done
        self._now = 0  # the same in the present step
        self._counts = torch.empty(0)  # what each row of the past counts, (rows,)
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
        if (self._inputs.dtype, self._inputs.device) != (weight.dtype, weight.device):
            self._inputs = self._gradients = weight.new_empty(0, 0, 0)
        self._before, before = 0, max((len(one.inputs) for one in changes if one), default=0)
        self._make_room(before + rows)  # nothing is done yet
        self._before = before
        self._counts = self._counted()
        for place, one in enumerate(changes):
            used = 0 if one is None else len(one.inputs)
            if one is not None:
                self._inputs[place, :used], self._gradients[place, :used] = one.inputs, one.gradients
            self._inputs[place, used:before] = self._gradients[place, used:before] = 0.0

    def _make_room(self, rows: int) -> None:
        """Have room for so many rows of each device; a layer has more than the stack counts if it runs over tokens."""
        devices, room, _ = self._inputs.shape
        if devices == self._devices and room >= rows:
            return
        if devices == self._devices:
            rows = max(rows, 2 * room)  # as devices that go on from their rows have more each round
        done, before = self._done, (self._inputs, self._gradients)
        self._inputs = self._gradients = self._inputs.new_empty(0, 0, 0)  # what is not copied goes before there is new
        if not done:
            before = self._inputs, self._gradients
        self._inputs = self._inputs.new_empty(self._devices, rows, self.ins)
        self._gradients = self._gradients.new_empty(self._devices, rows, self.outs)
        if done:
            self._inputs[:, :done], self._gradients[:, :done] = before[0][:, :done], before[1][:, :done]

    @property
    def _done(self) -> int:
        return self._before + sum(self._steps)

    def forward(self, values: Tensor) -> Tensor:
        """Returns the outputs (D * R, ..., out) for inputs (D * R, ..., in) of the devices that have a step."""
        outputs: Tensor = _WithHistory.apply(values, self._anchor, self)
        return outputs

    def outputs(self, values: Tensor) -> Tensor:
        """Computes the outputs, and keeps the inputs."""
        rows = values.reshape(self._live, -1, self.ins)
        done, self._now = self._done, rows.shape[1]
        self._make_room(done + self._now)
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
        self._inputs[: self._live, done : done + self._now] = rows
        if done:
            shares = torch.bmm(rows, self._inputs[: self._live, :done].transpose(1, 2))
            if self.biased:
                shares += 1.0
            shares *= self._counts
            found.baddbmm_(shares, self._gradients[: self._live, :done], alpha=-1.0)
        return outputs

    def hear(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        """Keeps the gradient at the outputs; returns that at the inputs, where it is `wanted`."""
        rows = gradient.reshape(self._live, -1, self.outs)
        done, found = self._done, None
        self.passes = self.passes[0], self.passes[1] + 1
        if wanted:
            shared = self._start.dim() == 2
            found = rows @ self._start if shared else torch.bmm(rows, self._start[: self._live])
            if self._history.start != 1.0:
                found *= self._history.start
            if done:
                shares = torch.bmm(rows, self._gradients[: self._live, :done].transpose(1, 2))
                shares *= self._counts
                found.baddbmm_(shares, self._inputs[: self._live, :done], alpha=-1.0)
            found = found.view(*gradient.shape[:-1], self.ins)
        self._gradients[: self._live, done : done + self._now] = rows
        return found

    def stepped(self) -> None:
        """Take the present step for one of the past."""
        self._steps.append(self._now)
        self._counts = self._counted()
        self.passes = 0, 0

    def leave(self, live: int) -> None:
        """Go on with the first `live` devices: the others have no more steps."""
        if live < self._live:
            done = self._done  # what an earlier round left behind it, in the place of the others, counts for nothing
            self._inputs[live : self._live, done:] = 0.0
            self._gradients[live : self._live, done:] = 0.0
            self._ended.append((live, self._history.start, self._counts))
        self._live = live

    def change(self, shares: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns, of weight and bias, the sum over devices of share (D,) times what its history counts."""
        counts = (shares[:, None] * self._all_counts()[1].double()).to(self._gradients)
        scaled = self._gradients[:, : self._done] * counts[..., None]
        inputs = self._inputs[:, : self._done].reshape(-1, self.ins)
        return scaled.reshape(-1, self.outs).t() @ inputs, scaled.sum((0, 1)) if self.biased else None

    def starts(self) -> Tensor:
        """Returns what the weights at the beginning count in each device's weights now, (D,) in float64."""
        return self._all_counts()[0]

    def finish(self, weight: Tensor, bias: Tensor | None) -> None:
        """Turn each device's weights at the beginning, (D, out, in) and (D, out), into those now, in place."""
        starts, counts = self._all_counts()
        scaled = self._gradients[:, : self._done] * counts[..., None]
        weight.mul_(starts.to(weight)[:, None, None])
        weight.baddbmm_(scaled.transpose(1, 2), self._inputs[:, : self._done], alpha=-1.0)
        if bias is not None:
            bias.mul_(starts.to(bias)[:, None]).sub_(scaled.sum(1))

    def changes(self) -> list[LayerRows]:
        """Returns each device's change since the weights at the beginning, which must count 1: rows that count."""
        scaled = self._gradients[:, : self._done] * self._all_counts()[1][..., None]
        inputs, used = self._inputs[:, : self._done], (scaled != 0.0).any(2)
        whole = used.all(1).tolist()
        return [
            LayerRows(inputs[place], scaled[place])
            if whole[place]
            else LayerRows(inputs[place][used[place]], scaled[place][used[place]])
            for place in range(self._devices)
        ]

    def sound(self) -> Tensor:
        """Returns, by device (D,), whether the norms of all that it trained with are finite.

        NotStackedError where they are, and the change of its weights may still be too large.
        """
        made = self._gradients[:, : self._done], self._inputs[:, : self._done]
        gradients, inputs = (torch.linalg.vector_norm(tensor, dim=(1, 2)) for tensor in made)
        found = gradients.isfinite() & inputs.isfinite()
        if bool((found & (gradients * inputs > _HUGE)).any()):
            raise NotStackedError("gradients are so large that each device's weights must be looked at")
        return found

    def drop(self, devices: Tensor) -> None:
        """Forget what devices, truth values (D,), trained with."""
        self._gradients[devices] = 0.0
        self._inputs[devices] = 0.0

    def _all_counts(self) -> tuple[Tensor, Tensor]:
        """Returns by device what the beginning counts (D,), in float64, and each row of the past (D, rows)."""
        starts = torch.full((self._devices,), self._history.start, dtype=torch.float64, device=self._inputs.device)
        counts = self._counts.repeat(self._devices, 1)
        last = self._devices
        for first, start, own in self._ended:
            starts[first:last], counts[first:last, : len(own)] = start, own
            last = first
        return starts, counts

    def _counted(self) -> Tensor:
        """Returns what each row of the past counts now, (rows,)."""
        counts = [self._history.start] * self._before
        for count, rows in zip(self._history.counts, self._steps, strict=True):
            counts += [count] * rows
        return torch.tensor(counts, dtype=self._inputs.dtype, device=self._inputs.device)


class _WithHistory(torch.autograd.Function):
    """A `LowRankLinear`'s products in both directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, anchor: Tensor, layer: LowRankLinear) -> Tensor:
        ctx.layer = layer
        return layer.outputs(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        return ctx.layer.hear(gradients[0], ctx.needs_input_grad[0]), None, None
