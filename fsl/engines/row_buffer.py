"""Room for the rows that a stack's devices train one layer with, kept from round to round."""

import torch
from torch import Tensor

_AT_ONCE = 1 << 18  # numbers of rows that are compared at once, so that they stay in the cache
_PAIRS = 1 << 24  # of rows that are looked at together, 64 MB
_MANY = 512  # rows of a device; so many are kept as weights, merged or not


class RowBuffer:
    """What a linear layer met of D devices: inputs (D, R, in), and gradients at its outputs (D, R, out).

    Of new memory a machine makes page after page, which takes longer than to fill it again; so the memory stays, and
    holds other numbers of devices and rows, too.
    """

    def __init__(self, ins: int, outs: int):
        self._widths = ins, outs
        self._memory = [torch.empty(0), torch.empty(0)]
        self._views = [torch.empty(0, 0, ins), torch.empty(0, 0, outs)]
        self.devices = self.rows = 0  # rows: of each device, done
        self._grown = 0  # the room that a round made beyond what it began with

    def begin(self, devices: int, rows: int, like: Tensor) -> None:
        """Start with no row of so many devices, and room for `rows` of each, of the kind that `like` is."""
        self.devices, self.rows = devices, 0
        alike = (self._memory[0].dtype, self._memory[0].device) == (like.dtype, like.device)
        for place, width in enumerate(self._widths):
            room = rows
            if alike and self._memory[place].numel() >= devices * self._grown * width:
                room = max(rows, self._grown)
            if not alike or self._memory[place].numel() < devices * room * width:
                self._views[place] = self._memory[place] = like.new_empty(0)  # it goes before there is new
                self._memory[place] = like.new_empty(devices * room * width)
            self._views[place] = self._memory[place][: devices * room * width].view(devices, room, width)

    def make_room(self, rows: int) -> None:
        """Have room for so many rows more; a layer has more than its stack counts if it runs over tokens."""
        needed, room = self.rows + rows, min(view.shape[1] for view in self._views)
        if needed <= room:
            return
        self._grown = max(needed, 2 * room)
        for place, width in enumerate(self._widths):
            before = self._views[place]
            # Devices that have no more steps write nothing there, and what they have counts for nothing.
            self._memory[place] = before.new_zeros(self.devices * self._grown * width)
            self._views[place] = self._memory[place].view(self.devices, self._grown, width)
            self._views[place][:, : self.rows] = before[:, : self.rows]

    @property
    def inputs(self) -> Tensor:
        """Returns the inputs of what is done, (D, rows, in): a view."""
        return self._views[0][:, : self.rows]

    @property
    def gradients(self) -> Tensor:
        """Returns the gradients of what is done, (D, rows, out): a view."""
        return self._views[1][:, : self.rows]

    def put(self, inputs: Tensor | None, gradients: Tensor | None) -> None:
        """Write rows of the first devices, (live, R, ...), behind those that are done; `rows` counts them later."""
        for view, values in zip(self._views, (inputs, gradients)):
            if values is not None:
                view[: len(values), self.rows : self.rows + values.shape[1]] = values

    def clear(self, devices: slice | Tensor) -> None:
        """Let these devices have zeros behind what is done; of those in a tensor of truth values (D,), everywhere."""
        first = self.rows if isinstance(devices, slice) else 0
        for view in self._views:
            view[devices, first:] = 0.0


def merge_equal(past: Tensor, past_gradients: Tensor, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both gradients with those of equal rows added up in the first such row, and 0 in the others.

    A device that trains with the same examples again and again then needs no more rows than it has examples: the sum
    of g^T x over all of them is the same. `past` (D, P, in) and `inputs` (D, R, in) are the rows of each device, one
    behind the other, with gradients (D, P, out) and (D, R, out). Rows are equal where all their bits are. Devices with
    many rows keep all.
    """
    before, rows = past.shape[1], inputs.shape[1]
    if not 0 < rows <= _MANY - before:
        return past_gradients, gradients
    group = max(1, _PAIRS // ((before + rows) * rows))
    if group >= len(inputs):
        return _merged(past, past_gradients, inputs, gradients)
    groups = [_merged(*parts) for parts in zip(*(t.split(group) for t in (past, past_gradients, inputs, gradients)))]
    return torch.cat([old for old, _ in groups]), torch.cat([new for _, new in groups])


def _merged(past: Tensor, past_gradients: Tensor, inputs: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    before, rows = past.shape[1], inputs.shape[1]
    marks = torch.cat([_marks(past), _marks(inputs)], 1)  # (D, P + R)
    first = (marks[:, before:, None] == marks[:, None, :]).view(torch.uint8).argmax(2)  # (D, R)
    own = torch.arange(before, before + rows, device=first.device).expand_as(first)
    if bool((first == own).all()):
        return past_gradients, gradients
    first = torch.where(_equal_to(past, inputs, first), first, own)
    chosen = first[:, None, :] == torch.arange(before + rows, device=first.device)[:, None]  # (D, P + R, R)
    added = torch.bmm(chosen.to(gradients), gradients)
    return past_gradients + added[:, :before], added[:, before:]


def _marks(rows: Tensor) -> Tensor:
    """Returns a number for each row, (D, R), that is the same where rows are, and hardly ever else."""
    weights = torch.arange(1, rows.shape[2] + 1, dtype=torch.float64, device=rows.device).cos().to(rows)
    found = rows.new_empty(rows.shape[:2])
    chunk = max(1, _AT_ONCE // max(1, rows.shape[1] * rows.shape[2]))
    for some, into in zip(rows.split(chunk), found.split(chunk)):
        torch.sum(some * weights, 2, out=into)
    return found


def _equal_to(past: Tensor, inputs: Tensor, first: Tensor) -> Tensor:
    """Returns whether each row of `inputs` is the same, bit for bit, as the row at `first` (D, R) of all of them."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[inputs.element_size()]
    past, inputs = past.view(whole), inputs.view(whole)
    apart = bool((first < past.shape[1]).all())  # no row is compared with others of `inputs`
    width = past.shape[1] if apart else past.shape[1] + inputs.shape[1]
    chunk = max(1, _AT_ONCE // (width * inputs.shape[2]))
    offsets = torch.arange(chunk, device=first.device)[:, None] * width
    found = torch.ones_like(first, dtype=torch.bool)
    for start in range(0, len(first), chunk):
        some = slice(start, start + chunk)
        rows = past[some] if apart else torch.cat([past[some], inputs[some]], 1)
        index = (first[some] + offsets[: len(rows)]).flatten()
        others = rows.flatten(0, 1).index_select(0, index).view_as(inputs[some])
        if not torch.equal(others, inputs[some]):
            found[some] = (others == inputs[some]).all(2)
    return found
