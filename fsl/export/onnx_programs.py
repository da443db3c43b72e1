"""Segments as ONNX models, which phones, browsers and servers run without torch."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fsl.errors import ConfigError
from fsl.export.flat_segment import Passed
from fsl.export.torch_programs import quietly, reason

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONE_FILE = 1_500_000_000  # bytes of weights beside a graph; a protobuf holds 2 GB


def missing() -> list[str]:
    """Returns the packages that ONNX models need and that are not installed."""
    return [name for name in _PACKAGES if find_spec(name) is None]


def save_onnx(segment: str, program: ExportedProgram, inputs: Passed, outputs: Passed, path: Path) -> None:
    """Write an exported program as an ONNX model; weights beyond 1.5 GB go into a file beside it.

    ConfigError, in one line, for an operation that ONNX does not have.
    """
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    with quietly(), torch.no_grad():
        try:
            made = _converted(program, inputs, outputs)
        except Exception as error:
            try:  # an operation that ONNX has in some forms only, as attention, is made of simpler ones
                made = _converted(program.run_decompositions(), inputs, outputs)
            except Exception:
                raise ConfigError(f"{segment} cannot be written as ONNX: {reason(error)}") from None
        made.save(path, external_data=size > _ONE_FILE)


def _converted(program: ExportedProgram, inputs: Passed, outputs: Passed) -> Any:
    rows = torch.export.Dim("batch")
    return torch.onnx.export(
        program,
        inputs.tensors,
        input_names=list(inputs.names),
        output_names=list(outputs.names),
        dynamic_shapes={"tensors": tuple({0: rows} if by_row else None for by_row in inputs.by_row)},
        dynamo=True,
        verbose=False,
    )


def run_onnx(path: Path, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns what an ONNX model in a file makes of inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return tuple(torch.from_numpy(array) for array in session.run(None, given))
