"""The tensors of a segment, packed: one flat buffer per dtype instead of a tensor per parameter.

Swapping a device's state in, and adding it to a weighted sum, is then one pass over one buffer. Each tensor starts
at a multiple of 64 elements, so that kernels see the alignment that a freshly allocated tensor has.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsl.errors import CheckpointError, RunError, SplitError
from fsl.segments.frozen import Frozen
from fsl.segments.tensor_places import Slot, plain_slots, tables

_ALIGN = 64  # elements; a multiple of every SIMD width, so no tensor starts in the middle of a vector


@dataclass(frozen=True)
class Field:
    """One tensor of a segment: its state_dict key and its place in the buffer of its dtype."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    start: int
    trainable: bool | None  # None for buffers; frozen parameters are no fields
    aliases: tuple[str, ...]  # further state_dict keys of the same tensor (tied weights)


@dataclass(frozen=True)
class State:
    """The values of a segment's tensors, packed by dtype."""

    flats: dict[torch.dtype, Tensor]

    def clone(self) -> "State":
        """A copy that shares no memory with this one."""
        return State({dtype: flat.clone() for dtype, flat in self.flats.items()})


class Layout:
    """Where a segment's module keeps its tensors, and where they lie in packed buffers.

    Its `fields` are what is trained, sent and averaged: the module's state_dict without its `frozen` parameters, which
    stay in the module. Buffers that are not in it, because they are not persistent or not set yet, are `transients`:
    each replica has its own, which begin every session as the module has them first. A tensor that is also held in a
    list, a dict or an attribute is swapped there as well, as in the `_flat_weights` of an LSTM.

    `borrower`: another segment's module on the same machine that uses trained parameters of this one (tied weights):
    they are swapped in both, and are fields of this layout alone. `lent`: their ids, for the borrower's layout.
    """

    def __init__(
        self,
        module: nn.Module,
        borrower: nn.Module | None = None,
        lent: Collection[int] = (),
        keys: Collection[str] | None = None,
        transients: bool = True,
    ):
        """`keys`: the state_dict keys of the tensors that belong to it; None: all. `transients`: whether these do."""
        lasting, transient = tables(module)
        state = module.state_dict(keep_vars=True)
        _refuse_other_keys(type(module).__name__, state, lasting)
        if keys is not None:
            state = {name: tensor for name, tensor in state.items() if name in keys}
        transient = transient if transients else {}
        by_identity: dict[int, list[str]] = {}
        for name, tensor in state.items():
            by_identity.setdefault(id(tensor), []).append(name)
        self.sizes: dict[torch.dtype, int] = {}
        fields, slots = [], []
        frozen: list[tuple[list[str], nn.Parameter, list[Slot]]] = []
        elsewhere = {} if borrower is None else _held(borrower)
        for identity, names in list(by_identity.items()):
            tensor = state[names[0]]
            if identity in lent:
                del by_identity[identity]
                continue
            if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
                frozen.append((names, tensor, [lasting[name] for name in names]))
                del by_identity[identity]
                continue
            start = self.sizes.get(tensor.dtype, 0)
            self.sizes[tensor.dtype] = start + -(-tensor.numel() // _ALIGN) * _ALIGN
            trainable = tensor.requires_grad if isinstance(tensor, nn.Parameter) else None
            others, other_slots = elsewhere.get(identity, ((), ())) if trainable else ((), ())
            aliases = dict.fromkeys([*names[1:], *(name for name in others if name not in names)])
            fields.append(Field(names[0], tensor.shape, tensor.dtype, start, trainable, tuple(aliases)))
            slots.append([*(lasting[name] for name in names), *other_slots])
        self.fields = tuple(fields)
        self.frozen = Frozen(frozen)
        self.has_buffers = any(field.trainable is None for field in fields) or bool(transient)
        self.bytes = sum(state[f.name].numel() * state[f.name].element_size() for f in fields)
        owners = dict(zip(by_identity, slots))
        self.transients: dict[str, Tensor | None] = {}  # by name, as the module has them first
        for name, (table, key) in transient.items():
            value = table[key]
            if value is not None and id(value) in owners:
                owners[id(value)].append((table, key))  # a second name
                continue
            self.transients[name] = None if value is None else value.detach().clone()
            slots.append([(table, key)])
            if value is not None:
                owners[id(value)] = slots[-1]
        for identity, plain in plain_slots(module, owners).items():
            owners[identity].extend(plain)
        self._slots = slots  # of the fields, then of the transients

    @property
    def trained(self) -> list[str]:
        """The names of the tensors that are trained, in the order of a replica's parameters."""
        return [field.name for field in self.fields if field.trainable]

    def zeros(self, device: torch.device | None = None) -> State:
        """A state of zeros."""
        return State({dtype: torch.zeros(size, dtype=dtype, device=device) for dtype, size in self.sizes.items()})

    def views(self, state: State) -> Iterator[tuple[Field, Tensor]]:
        """Each field with its tensor, a view into the packed buffer."""
        for field in self.fields:
            flat = state.flats[field.dtype]
            yield field, flat[field.start : field.start + field.shape.numel()].view(field.shape)

    def pack(self, tensors: Mapping[str, Tensor], device: torch.device | None = None) -> State:
        """Copy named tensors (state_dict keys) into a packed state; keys and shapes must be the segment's."""
        return self.pack_into(self.zeros(device), tensors)

    def pack_into(self, state: State, tensors: Mapping[str, Tensor]) -> State:
        """Copy named tensors as `pack` does into a state that is there; what is between tensors stays as it is."""
        for field, view in self.views(state):
            tensor = tensors.get(field.name)
            if tensor is None:
                raise CheckpointError(f"the state has no tensor '{field.name}'; it was written by another model")
            if tensor.shape != field.shape:
                raise CheckpointError(
                    f"tensor '{field.name}' has shape {tuple(tensor.shape)}, the model wants {tuple(field.shape)}"
                )
            view.copy_(tensor)
        return state

    def whole(self, state: State) -> dict[str, Tensor]:
        """The segment's whole state_dict: a packed state's tensors, as views, and the module's frozen parameters."""
        return self.unpack(state) | {name: tensor.detach() for name, tensor in self.frozen.tensors.items()}

    def unpack(self, state: State) -> dict[str, Tensor]:
        """The tensors of a packed state by state_dict key; they are views."""
        named = {}
        for field, view in self.views(state):
            for name in (field.name, *field.aliases):
                named[name] = view
        return named

    def capture(self) -> State:
        """A packed copy of what the module holds now."""
        return self.pack({f.name: table[key].detach() for f, ((table, key), *_) in zip(self.fields, self._slots)})

    def install(self, tensors: Sequence[Tensor | None]) -> None:
        """Make the module use these tensors, of fields and transients: dictionary writes, nothing is copied."""
        for slots, tensor in zip(self._slots, tensors):
            for table, key in slots:
                table[key] = tensor

    def installed(self) -> list[Tensor | None]:
        """What the module uses now, of fields and transients; it may have put a new tensor in a buffer's place."""
        return [table[key] for (table, key), *_ in self._slots]


class Replica:
    """One copy of a segment's tensors that can be put into its module, and trained."""

    def __init__(self, layout: Layout, device: torch.device | None = None):
        self.layout = layout
        self.state = layout.zeros(device)
        # `.data`: a version of its own. Views would share one, and autograd would take every weight that it keeps for a
        # changed one when a buffer is changed in place.
        self.tensors: list[Tensor] = [
            view.data if field.trainable is None else nn.Parameter(view.data, requires_grad=field.trainable)
            for field, view in layout.views(self.state)
        ]
        self.parameters = [t for t in self.tensors if isinstance(t, nn.Parameter) and t.requires_grad]
        self._own = [None if first is None else first.clone() for first in layout.transients.values()]
        self._transients = list(self._own)
        self._loaded = True  # and what the module has is of before

    def load(self, state: State, transients: Mapping[str, Tensor] | None = None) -> None:
        """Take over the values of a state, and these transients; the others are as the module has them first."""
        for dtype, flat in self.state.flats.items():
            flat.copy_(state.flats[dtype])
        for own, first in zip(self._own, self.layout.transients.values()):
            if own is not None and first is not None:
                own.copy_(first)
        self._transients = list(self._own)
        for index, name in enumerate(self.layout.transients):
            if transients is not None and name in transients:
                self._transients[index] = transients[name].clone()
        self._loaded = True

    @property
    def stale(self) -> bool:
        """Whether values were loaded since it was put into its module."""
        return self._loaded

    def install(self) -> None:
        """Put it into its module."""
        self.layout.install([*self.tensors, *self._transients])
        self._loaded = False

    def collect(self) -> State:
        """The values as they are now, not copied; call it while the replica is in its module.

        RunError where forward has put in a buffer's place what is no such tensor, or has frozen or unfrozen parameters.
        """
        if self._loaded:
            return self.state
        self.layout.frozen.refuse_touched()
        now = self.layout.installed()
        self._transients = now[len(self.tensors) :]
        moved = False
        for field, ours, used in zip(self.layout.fields, self.tensors, now):
            if used is not ours:
                if used is None or used.shape != ours.shape or used.dtype != ours.dtype:
                    became = "None" if used is None else f"{used.dtype} of shape {tuple(used.shape)}"
                    raise RunError(
                        f"forward put another kind of tensor in place of buffer '{field.name}': it was {ours.dtype} "
                        f"of shape {tuple(ours.shape)} and became {became}; keep its shape and dtype"
                    )
                with torch.no_grad():
                    ours.copy_(used)
                moved = True
            if field.trainable and not (used.requires_grad and ours.requires_grad):
                raise RunError(
                    f"the parameter '{field.name}' was trained when the run began, and has requires_grad=False now; "
                    "freeze and unfreeze parameters before the run, not in forward"
                )
        if moved:
            self.install()
        return self.state

    def transients(self) -> dict[str, Tensor]:
        """The transients that are not as they were first, copied; call it after `collect`."""
        named = zip(self.layout.transients.items(), self._transients)
        return {
            name: now.detach().clone()
            for (name, first), now in named
            if now is not None and (first is None or now.shape != first.shape or not torch.equal(now, first))
        }


def _held(module: nn.Module) -> dict[int, tuple[list[str], list[Slot]]]:
    """Returns, by id, the names of a module's parameters, and where it holds them."""
    found: dict[int, tuple[list[str], list[Slot]]] = {}
    for name, (table, key) in tables(module)[0].items():
        names, slots = found.setdefault(id(table[key]), ([], []))
        names.append(name)
        slots.append((table, key))
    for identity, plain in plain_slots(module, found).items():
        found[identity][1].extend(plain)
    return found


def _refuse_other_keys(model: str, state: Mapping[str, Tensor], tables: Mapping[str, object]) -> None:
    """SplitError where a state_dict is not the module's parameters and buffers, which are what is trained and sent."""
    other = next((name for name in state if name not in tables), None)
    missing = next((name for name in tables if name not in state), None)
    if other is not None:
        raise SplitError(f"the state_dict of {model} has '{other}', which is no parameter or buffer; register one")
    if missing is not None:
        raise SplitError(f"'{missing}' is not in the state_dict of {model}, so that it would be lost; leave it in")
    lazy = next((name for name, tensor in state.items() if is_lazy(tensor)), None)
    if lazy is not None:
        raise SplitError(f"'{lazy}' of {model} has no shape yet; run one batch through the model first")
