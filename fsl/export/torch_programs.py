"""Segments as programs of `torch.export` (.pt2), which torch alone runs, in Python or in C++."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fsl.errors import ConfigError
from fsl.export.flat_segment import FlatSegment, Passed


def exported_program(segment: str, flat: FlatSegment, inputs: Passed) -> ExportedProgram:
    """Returns a segment as a program whose batch may have any number of rows.

    It is traced on blank inputs: a program keeps its example, and data are not to be in it. ConfigError, in one line,
    for a segment that cannot be exported.
    """
    rows = torch.export.Dim("batch")
    free = tuple({0: rows} if by_row else None for by_row in inputs.by_row)
    try:
        with quietly(), torch.no_grad():
            return torch.export.export(flat, inputs.tensors, dynamic_shapes={"tensors": free}, strict=False)
    except Exception as error:
        raise ConfigError(f"{segment} cannot be exported by torch.export: {reason(error)}") from None


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program."""
    with quietly():
        torch.export.save(program, path)


def run_program(path: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns what a program in a file makes of inputs."""
    with quietly(), torch.no_grad():
        return tuple(torch.export.load(path).module()(*inputs))


def reason(error: BaseException) -> str:
    """Returns what an error of torch's goes back to, in one line; torch itself goes on for pages."""
    while (cause := error.__cause__) is not None:
        error = cause
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).partition("\n\n")[0].split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextmanager
def quietly() -> Iterator[None]:
    """Keep torch's advice to its own developers away from the user."""
    names = ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
