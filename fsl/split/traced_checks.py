"""Keeps checks in a forward that only raise (`assert x.dim() == 2`) as operations of its graph.

In a trace a forward's path cannot depend on values. A check does not choose a path: it lets the forward go on, or ends
it. Where Python asks for the truth of a traced value, this module finds the asking statement in the source.
"""

import ast
import dis
import inspect
import linecache
import operator
from collections.abc import Callable
from functools import cache, wraps
from types import FrameType
from typing import Any, TypeGuard, TypeVar

from torch import fx

F = TypeVar("F", bound=Callable[..., Any])
_Span = tuple[int, int, int, int]  # first line and column, last line and column


def recorded(function: F) -> F:
    """Make a function an operation of the graph where its arguments are traced."""

    @wraps(function)
    def either(*args: Any) -> Any:
        proxy = next((arg for arg in args if isinstance(arg, fx.Proxy)), None)
        return function(*args) if proxy is None else proxy.tracer.create_proxy("call_function", either, args, {})

    return either  # type: ignore[return-value]


@recorded
def require(value: Any, wanted: bool, source: str) -> None:
    """Raise ValueError where a check of a model's forward fails."""
    if bool(value) is not wanted:
        raise ValueError(f"a check of the model's forward failed: {source}")


def record_check(tracer: fx.Tracer, value: fx.Proxy, frame: FrameType | None) -> bool | None:
    """Put the check that asks for a traced value's truth into the graph; returns the truth that lets forward go on.

    None where the asking statement does more than raise, or has no source.
    """
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("torch.fx.", __package__ + ".trace")):
        frame = frame.f_back
    if frame is None or (span := _span(frame)) is None:
        return None
    asks = [step.opname for step in dis.get_instructions(frame.f_code) if step.offset >= frame.f_lasti][:2]
    if asks[0].startswith("CALL"):  # a function, such as any(), which may do anything with it
        return None
    for statement in _checks(frame.f_code.co_filename):
        found = None
        if _covers(statement.test, span):
            found = _wanted(statement.test, span, isinstance(statement, ast.Assert))
        elif isinstance(statement, ast.Assert) and _covers(statement, span):
            found = _wanted_of_rewritten(statement.test, asks)
        if found is not None:
            return _record(tracer, value, *found, ast.unparse(statement).split("\n")[0], frame)
    return None


def _record(
    tracer: fx.Tracer, value: fx.Proxy, asked: ast.expr, wanted: bool, source: str, frame: FrameType
) -> bool | None:
    if isinstance(asked, ast.Compare) and isinstance(asked.ops[-1], ast.In | ast.NotIn):
        within = wanted is isinstance(asked.ops[-1], ast.In)
        if within:  # Python asks one member after another; one must be true
            members = eval(
                compile(ast.Expression(asked.comparators[-1]), "<check>", "eval"), frame.f_globals, frame.f_locals
            )
            subject = next((arg for arg in value.node.args if isinstance(arg, fx.Node)), None)
            if subject is None or not all(isinstance(member, int | float | str) for member in members):
                return None
            value = tracer.create_proxy("call_function", operator.contains, (tuple(members), fx.Proxy(subject)), {})
        require(value, within, source)
        return within
    require(value, wanted, source)
    return wanted


def _wanted(test: ast.expr, span: _Span, wanted: bool) -> tuple[ast.expr, bool] | None:
    """Returns the part of a test at `span`, and its truth for which the whole test is `wanted`.

    None where that depends on other parts.
    """
    if _negated(test) and _covers(test.operand, span):
        return _wanted(test.operand, span, not wanted)
    if isinstance(test, ast.BoolOp):
        all_of_them = wanted is isinstance(test.op, ast.And)
        part = next((part for part in test.values if _covers(part, span)), None)
        # The last one decides if the others did not, and the others were not traced.
        if part is not None and (all_of_them or part is test.values[-1]):
            return _wanted(part, span, wanted)
        return None
    if _span_of(test) != span:  # a part that chooses a path, such as `a if b else c`
        return None
    if _negated(test):
        return test.operand, not wanted
    if isinstance(test, ast.Compare) and len(test.ops) > 1 and not wanted:
        return None
    return test, wanted


def _wanted_of_rewritten(test: ast.expr, asks: list[str]) -> tuple[ast.expr, bool] | None:
    """Like `_wanted` for an assert that pytest has rewritten into pieces at the statement's own place."""
    parts = [(test, True)]
    while any(isinstance(part, ast.BoolOp) or _negated(part) for part, _ in parts):
        opened: list[tuple[ast.expr, bool]] = []
        for part, wanted in parts:
            if isinstance(part, ast.BoolOp):
                if wanted is not isinstance(part.op, ast.And):
                    return None
                opened += [(value, wanted) for value in part.values]
            else:
                opened.append((part.operand, not wanted) if _negated(part) else (part, wanted))
        parts = opened
    members = [(p, w) for p, w in parts if isinstance(p, ast.Compare) and isinstance(p.ops[-1], ast.In | ast.NotIn)]
    if asks[0] == "CONTAINS_OP":
        return members[0] if len(members) == 1 else None
    return test, not (asks[0] == "UNARY_NOT" or asks == ["TO_BOOL", "UNARY_NOT"])


def _negated(test: ast.expr) -> TypeGuard[ast.UnaryOp]:
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


@cache
def _checks(filename: str) -> tuple[ast.Assert | ast.If, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return ()
    return tuple(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) or (isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise))
    )


def _span(frame: FrameType) -> _Span | None:
    positions = inspect.getframeinfo(frame).positions
    if positions is None or None in (positions.lineno, positions.end_lineno, positions.col_offset):
        return None
    return positions.lineno, positions.col_offset, positions.end_lineno, positions.end_col_offset  # type: ignore[return-value]


def _covers(node: ast.expr | ast.stmt, span: _Span) -> bool:
    own = _span_of(node)
    return own[:2] <= span[:2] and span[2:] <= own[2:]


def _span_of(node: ast.expr | ast.stmt) -> _Span:
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0
