"""Cuts a model into segments, and joins the segments' states again."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, SplitError
from fsl.models.vertical_model import VerticalModel
from fsl.segments.calling import call, named_inputs, refuse_unfit
from fsl.segments.modes import evaluating, training_modes
from fsl.segments.tensor_trees import Values, as_values, received
from fsl.split import traced_cut as tracing
from fsl.split.coded_model import CodedModel, DecodedBack, EncodedFront
from fsl.split.exported_cut import export
from fsl.split.placing import Place, placed
from fsl.split.traced_cut import Trace
from fsl.split.tracer import CannotCut, refuse_dropped

_MOST_CUTS = 2


@dataclass(frozen=True)
class Segment:
    """A part of a split model and where it runs; its state_dict has the unsplit model's keys."""

    name: str
    place: Place
    module: nn.Module


@dataclass(frozen=True)
class SplitModel:
    """A model as an ordered list of segments. `cuts` names the last module before each boundary."""

    segments: tuple[Segment, ...]
    cuts: tuple[str, ...]

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __getitem__(self, name: str) -> nn.Module:
        """Returns the module of the segment of this name; KeyError if there is none."""
        return {segment.name: segment.module for segment in self.segments}[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the segments in order."""
        return tuple(segment.name for segment in self.segments)


@checks_types(leave=("at", "example"))
def split(
    model: nn.Module,
    at: str | Sequence[str] | None = None,
    example: Values | None = None,
    places: Sequence[str] | None = None,
    *,
    tied: bool = False,
) -> SplitModel:
    """Cut a model after the modules named `at`; segments share the model's parameters, buffers and modules.

    Works for modules whose children run in sequence, for forwards that torch.fx can trace, and, with an `example`
    batch, for those that torch.export can. What is computed in front of a cut and needed behind it crosses: the output
    of the module at the cut, skip connections over it, masks. One cut gives front and back, two give front, back and
    tail (U-shaped), or with `places=("device", "edge", "cloud")` front, back and top (two hops). `at=None` takes the
    model's `default_cut`. Raises SplitError with the list of possible cuts, ConfigError for other places.

    `tied` lets device and edge hold one trained tensor: for parts that are measured, and not trained.
    """
    if isinstance(model, VerticalModel):
        if places is not None:
            raise SplitError(f"places={list(places)}: a VerticalModel's fronts run at its parties; leave places out")
        return _by_party(model, at)
    if isinstance(model, CodedModel):
        return _with_codec(model, at, example, places, tied)
    example = _fitting(model, example)
    cuts = _requested(model, at)
    named = placed(len(cuts), places)
    parts: list[nn.Module] = []
    rest, trained = model, _trained(model)
    for number, cut in enumerate(cuts, start=1):
        try:
            part, rest = _cut(rest, cut, {}, trained, example)
            if number == len(cuts) and not tied:
                _refuse_shared(model, [*parts, part, rest], [place for _, place in named])
        except CannotCut as error:
            exists = cut in dict(model.named_modules(remove_duplicate=False))
            reason = f"it is not behind '{cuts[len(parts) - 1]}'" if parts and exists and not _has(rest, cut) else error
            raise SplitError(f"cut={cut!r} cannot be made: {reason}; {_choices(model)}") from None
        parts.append(part)
        example = None if example is None or len(cuts) == 1 else _through(part, example)
    parts.append(rest)
    return SplitModel(tuple(Segment(name, place, part) for (name, place), part in zip(named, parts)), cuts)


def _by_party(model: VerticalModel, at: str | Sequence[str] | None) -> SplitModel:
    """A model of vertically partitioned features is in its segments already: a front for each party, back, and tail."""
    if at is not None:
        raise SplitError(f"cut={at!r}: a VerticalModel is cut behind its parties' fronts; leave the cut out")
    parts = [Segment(*part) for part in model.segments()]
    fronts = [f"fronts.{party}" for party in model.parties]
    return SplitModel(tuple(parts), (*fronts, "back") if model.tail is not None else tuple(fronts))


def _with_codec(
    model: CodedModel, at: str | Sequence[str] | None, example: Values | None, places: Sequence[str] | None, tied: bool
) -> SplitModel:
    """A model with a trained codec is cut where that is: its encoder ends the front, its decoder begins the back."""
    asked = model.cuts if at is None else _requested(model.inner, at)
    if asked != model.cuts:
        raise SplitError(f"cut={list(asked)}: the model has a trained codec at {list(model.cuts)}; leave the cut out")
    parts = split(model.inner, asked, model.example if example is None else example, places, tied=tied)
    front, back, *others = parts.segments
    front = replace(front, module=EncodedFront(front.module, model.encoder))
    back = replace(back, module=DecodedBack(back.module, model.decoder))
    return SplitModel((front, back, *others), parts.cuts)


@contextmanager
def told_as(written: Callable[[str], str]) -> Iterator[None]:
    """Have a line on a cut that cannot be made begin as the user wrote it, where that was not `cut=`."""
    try:
        yield
    except SplitError as error:
        if (named := _TOLD.match(line := str(error))) is None:
            raise
        raise SplitError(f"{written(named[1])}{line[named.end() :]}") from error.__cause__


_TOLD = re.compile(r"cut='([^']+)'")


def passes_one(part: nn.Module) -> bool:
    """Returns whether a part of a cut model is known, from its modules or its graph, to pass one tensor on."""
    if isinstance(part, tracing.Traced):
        return part.passes_one
    last = part
    while type(last).forward is nn.Sequential.forward and last._modules:
        last = list(last.children())[-1]
    return type(last).__module__.startswith("torch.nn.") and not isinstance(last, _SEVERAL_OUTPUTS)


_SEVERAL_OUTPUTS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def refuse_tail(segments: Iterable[str], who: str) -> None:
    """Raise ConfigError where these segments have a tail, which would stay untrained: edges train fronts and backs.

    `who` begins the sentence, as in "SplitFedV1 trains".
    """
    if "tail" in segments:
        raise ConfigError(
            f"cut: two cuts give front, back and tail, and {who} only a front and a back, so that the tail would never "
            "be trained; give one cut, or use splitfed_v1, splitfed_v2, splitfed_v3, vanilla, psl, sglr or fedavg"
        )


@checks_types()
def join(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join segments' states, in order of the segments, into the unsplit model's state_dict.

    Raises SplitError where two segments hold the same key with different values.
    """
    whole: dict[str, Tensor] = {}
    for segment, state in states.items():
        for key, tensor in state.items():
            known = whole.setdefault(key, tensor)
            if known is not tensor and not torch.equal(known, tensor):
                raise SplitError(f"segment '{segment}' has '{key}', which an earlier segment has with other values")
    return whole


@checks_types(leave=("example",))
def possible_cuts(model: nn.Module, example: Values | None = None) -> list[str]:
    """List the names of modules after which the model can be cut: exactly those that `split` accepts."""
    example = _fitting(model, example)
    traces: dict[str, Trace | CannotCut] = {}
    trained, names = _trained(model), [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    return [name for name in names if _possible(model, name, traces, trained, example)]


def _fitting(model: nn.Module, example: Values | None) -> Values | None:
    """Returns an example batch in the structure that a model takes; ConfigError where it lacks inputs."""
    found = as_values(example)
    if found is not None:
        refuse_unfit(model, found, "the example")
    return found


def _trained(model: nn.Module) -> dict[int, bool]:
    """Returns, by id, each module's mode in training."""
    return {id(module): training for module, training in training_modes(model)}


def _through(part: nn.Module, example: Values) -> Values:
    """Returns what a part makes of an example: the example of the next one."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(part):
        return received(call(part, example))


def _requested(model: nn.Module, at: str | Sequence[str] | None) -> tuple[str, ...]:
    if at is None:
        at = getattr(model, "default_cut", None)
        if at is None:
            raise SplitError(f"{type(model).__name__} has no default cut, so name one; {_choices(model)}")
    cuts = tuple(at) if isinstance(at, Sequence) and not isinstance(at, str) else (at,)
    if not all(isinstance(cut, str) for cut in cuts):
        raise SplitError(f"cut={at!r}: a cut is the name of a module, a string; {_choices(model)}")
    if not 1 <= len(cuts) <= _MOST_CUTS:
        raise SplitError(f"cut={list(cuts)}: one cut (front, back) or two (front, back, tail) can be made")
    return cuts


def _possible(
    model: nn.Module,
    at: str,
    traces: dict[str, Trace | CannotCut],
    trained: Mapping[int, bool],
    example: Values | None,
) -> bool:
    try:
        _refuse_shared(model, _cut(model, at, traces, trained, example), ("device", "edge"))
    except CannotCut:
        return False
    return True


def _cut(
    model: nn.Module,
    at: str,
    traces: dict[str, Trace | CannotCut],
    trained: Mapping[int, bool],
    example: Values | None,
) -> tuple[nn.Module, nn.Module]:
    """Returns the parts up to `at` and behind it; `traces` caches traces by parent module."""
    if not at or not _has(model, at):
        raise CannotCut("the model has no module of that name")
    if _in_sequentials(model, at):
        halves = _slice(model, at.split("."))
    else:
        halves = _traced_halves(model, at, traces, trained, example)
    if tracing.does_nothing(halves[1]):
        raise CannotCut(f"there is nothing behind '{at}'")
    return halves


def _traced_halves(
    model: nn.Module,
    at: str,
    traces: dict[str, Trace | CannotCut],
    trained: Mapping[int, bool],
    example: Values | None,
) -> tuple[nn.Module, nn.Module]:
    """Cut by a trace of torch.fx, or else by one of torch.export."""
    if isinstance(model, tracing.Traced) and (known := model.traced_again(at)) is not None:
        return tracing.cut(model, at, known)
    inputs = () if example is None else named_inputs(model, example)
    try:
        parent = at.rpartition(".")[0]
        return tracing.cut(model, at, _traced(parent, traces, lambda: tracing.trace(model, parent, trained, inputs)))
    except CannotCut as error:
        if example is None:
            raise
        try:
            return tracing.cut(model, at, _traced(_EXPORTED, traces, lambda: export(model, example, trained)))
        except CannotCut as other:
            raise CannotCut(f"{error}; by torch.export: {other}") from None


_EXPORTED = "torch.export"  # the key of its one trace; no module's name has a dot at this place


def _traced(key: str, traces: dict[str, Trace | CannotCut], trace: Callable[[], Trace]) -> Trace:
    if key not in traces:
        try:
            traces[key] = trace()
        except CannotCut as error:
            traces[key] = error
    found = traces[key]
    if isinstance(found, CannotCut):
        raise found
    return found


def _choices(model: nn.Module) -> str:
    names = possible_cuts(model)
    return f"possible cuts: {', '.join(names)}" if names else "it cannot be cut anywhere"


def _refuse_shared(model: nn.Module, parts: Sequence[nn.Module], places: Sequence[Place]) -> None:
    """Raise CannotCut where device and edge would both train a tensor.

    Both may hold a frozen one, and front and tail, which a device has both, may be tied by one that is trained.
    """
    owned = {id(tensor) for tensor in (*(p for p in model.parameters() if p.requires_grad), *model.buffers())}
    seen: dict[int, tuple[int, str]] = {}
    for index, part in enumerate(parts):
        parameters = part.named_parameters(remove_duplicate=False)
        for name, tensor in (*parameters, *part.named_buffers(remove_duplicate=False)):
            owner, first = seen.setdefault(id(tensor), (index, name))
            both_here = places[owner] == places[index] == "device" and isinstance(tensor, nn.Parameter)
            if owner != index and id(tensor) in owned and not both_here:
                tied = f"'{name}' is used" if name == first else f"'{first}' and '{name}' are one tensor that is used"
                raise CannotCut(
                    f"{tied} on both sides, and cannot be trained in two places; untie it (in models of transformers "
                    "tie_word_embeddings=False), freeze it, cut twice so that front and tail hold it, or cut elsewhere"
                )


def _has(model: nn.Module, name: str) -> bool:
    return any(name == known for known, _ in model.named_modules(remove_duplicate=False))


def _in_sequentials(model: nn.Module, at: str) -> bool:
    owner: nn.Module = model
    for name in at.split("."):
        kind = type(owner)
        # Its forward calls what `iter` yields.
        sequential = kind.forward is nn.Sequential.forward and kind.__iter__ is nn.Sequential.__iter__  # type: ignore[attr-defined]
        if not sequential or name not in owner._modules:
            return False
        owner = owner._modules[name]  # type: ignore[assignment]
    return True


def _slice(model: nn.Module, path: list[str]) -> tuple[nn.Module, nn.Module]:
    refuse_dropped("", model)
    names = list(model._modules)
    index = names.index(path[0])
    children = OrderedDict((name, model._modules[name]) for name in names)
    before = OrderedDict((name, children[name]) for name in names[:index])
    behind = OrderedDict((name, children[name]) for name in names[index + 1 :])
    if len(path) == 1:
        before[path[0]] = children[path[0]]
    else:
        first, second = _slice(children[path[0]], path[1:])  # type: ignore[arg-type]
        before[path[0]] = first
        if second._modules or second._parameters or second._buffers:
            behind[path[0]] = second
            behind.move_to_end(path[0], last=False)
    front, back = _sequence(before, model), _sequence(behind, model)
    # A container's forward does not use its own tensors; the back keeps them, so that joining gives every key.
    back._parameters, back._buffers = dict(model._parameters), dict(model._buffers)
    back._non_persistent_buffers_set = set(model._non_persistent_buffers_set)
    return front, back


def _sequence(children: "OrderedDict[str, nn.Module | None]", model: nn.Module) -> nn.Sequential:
    part = nn.Sequential(children)  # type: ignore[arg-type]
    part.training = model.training
    return part
