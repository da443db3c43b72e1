"""Divides the graph of a forward at a cut: what is in front, what is behind, and what crosses.

Everything that is computed in front and needed behind crosses: the output of the module at the cut, skip connections
over it, lengths as numbers. Questions that the crossing tensors answer alike (rows, dtype) do not cross. What depends
on masks and positions alone is computed anew behind, from these. A model's data never cross: a cut is refused by
name where an input, or what was made of it without any weight, would.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fsl.errors import SplitError
from fsl.split.traced_checks import recorded
from fsl.split.tracer import CannotCut

Inside = Callable[[fx.Node], bool]  # whether a node belongs to the module at the cut
_MASKS = ("mask", "position_ids", "token_type_ids")  # ends of names of inputs that say nothing of a sample's content
MODULES = "fsl_modules"  # in a node's meta: the names of the modules in which it was computed, of an exported graph
_CROSSED = "fsl_crossed"  # in a placeholder's meta: what it stands for has crossed a cut in front of this one
_SIZES = (torch.ops.aten.sym_size.int,)


def divide(graph: fx.Graph, at: str, inside: Inside, weights: frozenset[str]) -> tuple[fx.Graph, fx.Graph]:
    """Divide a graph after the last node inside the module `at`; CannotCut says why it is impossible.

    `weights`: names of parameters, and of modules that have some. The front returns what crosses: one value, or a
    tuple of several, which is the back's only input.
    """
    nodes = list(graph.nodes)
    within = [node for node in nodes if inside(node)]
    if not within:
        raise CannotCut(f"forward does not call '{at}'")
    boundary = within[-1]
    if asked := next((node.target for node in boundary.users if _is_foreign(node)), None):
        raise CannotCut(
            f"'{at}' returns no tensor (.{asked} of it is used), and a cut needs one, or some in a structure"
        )
    before = _before(nodes, boundary)
    _take_parts(nodes, boundary, before)
    later = [node for node in nodes if node not in before]
    again = _made_again(nodes, before)
    crossing, questions = _crossing(later, boundary, before, again)
    if not crossing:
        raise CannotCut(f"there is nothing behind '{at}' that uses it")
    for node in crossing:
        if node is not boundary:
            _refuse_data(node, at, weights)

    front = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in before or node in questions:
            copies[node] = _copy(front, node, copies)
    back = fx.Graph()
    smashed = back.placeholder("smashed")
    smashed.meta[_CROSSED] = True
    behind: dict[fx.Node, fx.Node] = {}
    for place, node in enumerate(crossing):
        behind[node] = smashed if len(crossing) == 1 else back.call_function(operator.getitem, (smashed, place))
    checked: list[tuple[str, fx.Node]] = []
    needed = reach(later, stop=crossing, through=lambda n: n not in before or n in again)
    for node in nodes:
        if node in behind or (node in before and not (node in again and node in needed)):
            continue
        if node in questions:
            behind[node] = back.call_function(_ANSWERS[questions[node]], (behind[crossing[0]],))
            checked.append((questions[node], copies[node]))
            continue
        for used in node.all_input_nodes:
            if used in behind:
                continue
            if used.op == "get_attr":
                behind[used] = _copy(back, used, behind)
            elif (asked := _asked(used)) is not None:
                behind[used] = back.call_function(_ANSWERS[asked], (behind[crossing[0]],))
                if used in copies:
                    checked.append((asked, copies[used]))
        behind[node] = _copy(back, node, behind)
    kept = copies[crossing[0]]
    for asked in ("rows", "dtype"):
        if values := [value for kind, value in checked if kind == asked]:
            kept = front.call_function(with_same, (kept, at, asked, *values))
    front.output(kept if len(crossing) == 1 else (kept, *(copies[node] for node in crossing[1:])))
    return front, back


def _copy(into: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    made = into.node_copy(node, lambda used: copies[used])
    made.meta = {key: node.meta[key] for key in (MODULES, _CROSSED) if key in node.meta}
    return made


def _take_parts(nodes: list[fx.Node], boundary: fx.Node, before: set[fx.Node]) -> None:
    """Let the front take a structured output apart (`out, _ = lstm(x)`, `.hidden`), so that less crosses.

    It also answers later questions for a shape, of which a length crosses as a number; rows are asked of what crosses.
    """
    taken, fronts = {boundary}, before - {boundary}
    for node in nodes:
        if node in before:
            continue
        if _is_part(node) and node.all_input_nodes[0] in taken and not is_shape(node.args[0]):
            taken.add(node)
        elif not (is_shape(node) and node.all_input_nodes[0] in fronts):
            of_shape = node.target is operator.getitem and is_shape(node.args[0]) and _asked(node) is None
            if not (of_shape and node.args[0] in before):
                continue
        before.add(node)


def _is_foreign(node: fx.Node) -> bool:
    """Returns whether a node calls a method that no tensor has, which what is rebuilt behind the cut may not have."""
    return node.op == "call_method" and not hasattr(Tensor, str(node.target))


def _is_part(node: fx.Node) -> bool:
    if len(node.all_input_nodes) != 1 or node.kwargs:
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[1], int | str)
    named = node.args[1] if node.target is getattr else None
    return isinstance(named, str) and not hasattr(Tensor, named)


def _made_again(nodes: list[fx.Node], before: set[fx.Node]) -> set[fx.Node]:
    """Returns the front's nodes that need masks, sizes and constants alone: the back can compute them, too.

    Only operations of which it is known that they draw no random numbers (those of an exported graph say so).
    """
    found: set[fx.Node] = set()
    for node in nodes:
        if node not in before:
            continue
        if node.op == "placeholder":
            plain = is_mask(str(node.target))
        else:
            known = isinstance(node.target, torch._ops.OpOverload)
            drawn = known and torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
            used = node.all_input_nodes
            plain = known and not drawn and all(n in found or _asked(n) is not None for n in used)
            plain = plain or (
                _is_number(node) and bool(used) and all(n in found or _asked(n) is not None for n in used)
            )
        if plain:
            found.add(node)
    return found


def is_mask(name: str) -> bool:
    """Returns whether an input of this name says nothing of a sample's content, so that it may cross a cut."""
    return name.endswith(_MASKS)


def _crossing(
    later: list[fx.Node], boundary: fx.Node, before: set[fx.Node], again: set[fx.Node]
) -> tuple[list[fx.Node], dict[fx.Node, str]]:
    """Returns what crosses, the boundary first, and the later questions that crossing tensors answer, by kind."""
    crossing: list[fx.Node] = []
    questions: dict[fx.Node, str] = {}

    def need(node: fx.Node) -> None:
        if node in crossing or node.op == "get_attr" or _asked(node) is not None:
            return
        if node in again and node.op != "placeholder":
            for used in node.all_input_nodes:
                need(used)
        else:
            crossing.append(node)

    for node in later:
        asked = _asked(node)
        if asked is not None and node.all_input_nodes[0] in before - {boundary}:
            questions[node] = asked
            continue
        for used in node.all_input_nodes:
            if used in before:
                need(used)
    order = {node: place for place, node in enumerate(crossing)}
    return sorted(crossing, key=lambda node: (node is not boundary, order[node])), questions


def _refuse_data(node: fx.Node, at: str, weights: frozenset[str]) -> None:
    """Raise CannotCut where what crosses is an input of the model, or a way leads there from one without a weight."""

    def weighted(other: fx.Node) -> bool:
        if other.op == "call_module":
            return str(other.target) in weights
        return any(n.op == "get_attr" and str(n.target) in weights for n in other.all_input_nodes)

    if _is_number(node) or weighted(node):
        return
    needs = reach([node], through=lambda n: not (_is_number(n) or weighted(n)))
    inputs = [n for n in needs if n.op == "placeholder" and not is_mask(str(n.target)) and _CROSSED not in n.meta]
    if inputs:
        name = inputs[0].target
        what = (
            f"the model's input '{name}'" if node in inputs else f"'{node.name}', made of the model's input '{name}',"
        )
        raise CannotCut(
            f"{what} is needed behind '{at}', and data never leave a device (masks and positions may: inputs whose "
            f"names end with {', '.join(_MASKS)})"
        )


def _is_number(node: fx.Node) -> bool:
    """Returns whether a node is a size, a dtype, or computed from such alone."""
    if _asked(node) is not None or node.target in _SIZES or is_shape(node):
        return True
    if node.op == "call_method" and node.target in ("size", "dim", "numel", "ndimension"):
        return True
    if node.target is getattr and node.args[1] in ("ndim", "dtype", "device", "shape"):
        return True
    used = node.all_input_nodes
    plain = node.op == "call_function" and getattr(node.target, "__module__", "") in ("_operator", "builtins", "math")
    return plain and bool(used) and all(_is_number(n) for n in used)


@recorded
def rows_of(smashed: Tensor) -> int:
    """Returns the number of rows of a batch."""
    return smashed.shape[0]


@recorded
def dtype_of(smashed: Tensor) -> torch.dtype:
    """Returns the dtype of smashed data."""
    return smashed.dtype


@recorded
def device_of(smashed: Tensor) -> torch.device:
    """Returns the torch device on which the back computes."""
    return smashed.device


_ANSWERS: dict[str, Callable[..., Any]] = {"rows": rows_of, "dtype": dtype_of, "device": device_of}


@recorded
def with_same(smashed: Tensor, at: str, asked: str, *values: Any) -> Tensor:
    """Returns smashed data as they are; SplitError where the back expects other rows or another dtype."""
    has = _ANSWERS[asked](smashed)
    for value in values:
        if value != has:
            raise SplitError(
                f"cut={at!r}: what is behind the cut needs the {asked} of a tensor in front of it, {value}, and the "
                f"front's output has {has}; cut where they are the same"
            )
    return smashed


def _asked(node: fx.Node) -> str | None:
    """Returns the question of a node that smashed data can answer: `x.size(0)`, `x.shape[0]`, `x.dtype`, `x.device`."""
    if node.target in _SIZES:
        return "rows" if node.args[1] == 0 else None
    if node.op == "call_method" and node.target == "size":
        return "rows" if (*node.args[1:], *node.kwargs.values()) == (0,) else None
    if node.target is getattr and node.args[1] in ("dtype", "device"):
        return str(node.args[1])
    return "rows" if node.target is operator.getitem and node.args[1] == 0 and is_shape(node.args[0]) else None


def is_shape(value: Any) -> bool:
    """Returns whether a node is a whole shape: `x.shape`, `x.size()`."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return len(value.args) == 1 and not value.kwargs
    return value.target is getattr and value.args[1:] == ("shape",)


def _before(nodes: list[fx.Node], boundary: fx.Node) -> set[fx.Node]:
    """Returns the nodes of the front: what the cut module needs, and earlier nodes that give nothing to the back.

    Nodes before the cut that only serve the back (an early positional embedding) go to the back; nodes that nobody
    reads (an in-place operation whose result is dropped) stay with what they work on.
    """
    position = nodes.index(boundary)
    before = reach([boundary])
    for_the_back = reach(nodes[position + 1 :], stop=before, through=lambda node: _asked(node) is None)
    for node in nodes[:position]:
        if node.op == "placeholder" or (
            node not in for_the_back and not any(n in for_the_back and n not in before for n in node.all_input_nodes)
        ):
            before.add(node)
        elif node not in before:
            for_the_back.add(node)
    return before


def reach(
    nodes: Iterable[fx.Node], stop: Iterable[fx.Node] = (), through: Callable[[fx.Node], bool] = lambda node: True
) -> set[fx.Node]:
    """Returns these nodes and all that they depend on, up to the nodes `stop`, and only by way of those `through`."""
    found, borders = set(nodes), set(stop)
    open_nodes = list(found)
    while open_nodes:
        for needed in open_nodes.pop().all_input_nodes:
            if needed not in found and needed not in borders and through(needed):
                found.add(needed)
                open_nodes.append(needed)
    return found
