"""Digests of contents: 16 hexadecimal characters that are the same in every process and on every machine."""

import hashlib

import numpy as np
import torch
from torch import Tensor

WHOLE = 64 << 20  # bytes up to which all content counts; above, a sample of the rows
_SAMPLED = 1000  # rows
_BLOCK = 8 << 20  # bytes at a time, so that a copy of rows that lie apart stays small


def digest_text(text: str) -> str:
    """The digest of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest_values(values: Tensor | np.ndarray, whole: bool = False) -> str:
    """The digest of numbers: of their dtype, shape and content, whatever their strides and byte order.

    Above 64 MB it counts a thousand rows, the same ones each time, the first and the last among them; or all, `whole`.
    """
    array, dtype = _as_array(values)
    found = hashlib.sha256(f"{dtype} {array.shape}".encode())
    if not whole and array.nbytes > WHOLE and len(array) > _SAMPLED:
        drawn = np.random.default_rng(0).choice(len(array), _SAMPLED, replace=False)
        array = array[np.union1d(drawn, [0, len(array) - 1])]
    array = array.reshape(1) if not array.ndim else array
    rows = max(1, _BLOCK * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), rows):
        found.update(np.ascontiguousarray(array[start : start + rows]).data if array.size else b"")
    return found.hexdigest()[:16]


def _as_array(values: Tensor | np.ndarray) -> tuple[np.ndarray, str]:
    if isinstance(values, np.ndarray):
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        return values, values.dtype.name
    values = values.detach().cpu().resolve_conj().resolve_neg()
    values = values.to_dense() if values.layout != torch.strided else values
    if values.is_quantized:
        values = values.int_repr()
    dtype = str(values.dtype).removeprefix("torch.")
    if values.dtype.itemsize == 2 and values.is_floating_point():
        values = values.view(torch.int16)  # NumPy knows no bfloat16
    elif values.dtype.itemsize == 1 and values.is_floating_point():
        values = values.view(torch.uint8)
    return values.numpy(), dtype
