"""Keeps every value within a bound, and sends quantized values in few bits."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.bit_planes import BLOCK, LARGEST, Planes, decode_part, encode_part, parts
from fsl.codecs.codec import Codec, Payload, pack
from fsl.errors import ConfigError, RunError, WireError

_ROOM = 2.0**-20  # of the bound, for arithmetic
_INT32 = (1 << 31) - 1  # values, up to which places are int32


class ErrorBounded(Codec):
    """Quantizes with a step of twice the bound; no decoded value differs from its input by more than the bound.

    `bound`: the largest error; with `relative` as a share of the tensor's largest absolute value. Zeros stay zeros.
    `signs`: no other value becomes zero or changes its sign. What the dtype cannot hold within the bound, as huge
    values beside an absolute bound, is sent as it is. Quantized values take as many bits as the largest of 256
    neighbours needs (`fsl.codecs.bit_planes`): zeros cost a bit where they are many, and 256 of them a byte. Not
    row-wise: a step is one for the tensor, and blocks go across rows. RunError for values that are not finite.

    The error bound and the exact zeros as in Jin et al. 2022, "COMET: A Novel Memory-Efficient Deep Learning Training
    Framework by Using Error-Bounded Lossy Compression" (VLDB, arXiv 2111.09562); the code of quantized values and
    `signs` are this library's.
    """

    name: ClassVar[str] = "error_bounded"
    fixed_size: ClassVar[bool] = False

    @checks_types("error_bounded.")
    def __init__(self, bound: float = 1e-2, relative: bool = True, signs: bool = False) -> None:
        if not 0 < bound < (1 if relative else float("inf")):
            limit = " and below 1, a share of the largest value" if relative else " and finite"
            raise ConfigError(f"bound={bound!r}: the largest error of a value, above 0{limit}")
        self.bound, self.relative, self.signs = float(bound), relative, signs

    def encode(self, values: Tensor) -> Payload:
        """Returns, of values of any shape, arrays of bits and the values that are sent as they are."""
        flat = values.detach().contiguous().flatten()
        if not flat.numel():
            return self._raw(values)
        largest = largest_of(flat)
        if not largest < float("inf"):
            raise RunError(
                "codec error_bounded got a value that is not finite; training has diverged: lower the learning rate"
            )
        bound = self.bound * largest if self.relative else self.bound
        rounding = torch.finfo(values.dtype).eps / 2 * largest  # of decoded values to their dtype
        step = 2 * (bound * (1 - _ROOM) - min(rounding, bound / 2))
        step = step if step > 0 else 1.0
        kinds, bits, outliers = [], [], []
        for part in parts(len(flat)):
            exact = flat[part].double()
            numbers = self._quantized(exact, step)
            decoded = self._restored(numbers, step).to(values.dtype).double()
            kept = (decoded - exact).abs_() <= bound * (1 - _ROOM / 2)
            if self.signs:
                kept &= (decoded != 0) == (exact != 0)
            if not bool(kept.all()):
                outliers.append((~kept).nonzero().flatten() + part.start)
                numbers = numbers * kept
            kind, planes = encode_part(torch.nn.functional.pad(numbers.int(), (0, -len(numbers) % BLOCK)))
            kinds.append(kind)
            bits.append(planes)
        where = torch.cat(outliers) if outliers else torch.empty(0, dtype=torch.int64, device=flat.device)
        payload = pack(
            self.name,
            values.dtype,
            ("step", torch.tensor([step], dtype=torch.float64)),
            ("kinds", torch.cat(kinds)),
            ("bits", torch.cat(bits)),
            ("places", where if len(flat) > _INT32 else where.int()),
            ("exact", flat[where]),
            shape=values.shape,
        )
        size = sum(array.nbytes for _, array in payload.arrays)
        return payload if size < flat.nbytes else self._raw(values)

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values in the dtype and the shape that were encoded."""
        dtype = payload.dtype
        if [name for name, _ in payload.named] == ["raw"]:
            return payload.unpack(self.name, raw=dtype)[0]
        shape = self.check_size(payload.shape, dtype)
        count = shape.numel()
        step, kinds, bits, places, exact = arrays = payload.unpack(
            self.name,
            step=torch.float64,
            kinds=torch.uint8,
            bits=torch.uint8,
            places=torch.int64 if count > _INT32 else torch.int32,
            exact=dtype,
        )
        if (
            any(array.dim() != 1 for array in arrays)
            or len(step) != 1
            or not 0 < float(step) < float("inf")
            or len(kinds) != -(-count // BLOCK)
            or len(places) != len(exact)
        ):
            raise WireError(f"codec '{self.name}' got arrays that do not fit values of shape {tuple(shape)}")
        flat, reader = torch.empty(count, dtype=dtype, device=kinds.device), Planes(bits)
        for part in parts(count):
            blocks = kinds[part.start // BLOCK : -(-part.stop // BLOCK)]
            numbers = decode_part(blocks, reader)[: part.stop - part.start]
            if int(numbers.amax()) > LARGEST or int(numbers.amin()) < -LARGEST:
                raise WireError(f"codec '{self.name}' got a number beyond {LARGEST}")
            flat[part] = self._restored(numbers.double(), float(step)).to(dtype)
        reader.refuse_more()
        if len(places):
            if int(places.amin()) < 0 or int(places.amax()) >= count:
                raise WireError(f"codec '{self.name}' got a place beyond values of shape {tuple(shape)}")
            flat[places.long()] = exact
        return flat.view(shape)

    def _raw(self, values: Tensor) -> Payload:
        return pack(self.name, values.dtype, ("raw", values.detach().contiguous()))

    def _quantized(self, exact: Tensor, step: float) -> Tensor:
        """Returns whole numbers, float64."""
        found = (exact.abs() / step).ceil_() * exact.sign() if self.signs else (exact / step).round_()
        return found.clamp_(-LARGEST, LARGEST)

    def _restored(self, numbers: Tensor, step: float) -> Tensor:
        """Returns values of whole numbers, both float64; with `signs` the middle of each step away from zero."""
        return (numbers - 0.5 * numbers.sign()) * step if self.signs else numbers * step


def largest_of(values: Tensor) -> float:
    """Returns the largest absolute value of at least one, without a copy; NaN where one is NaN."""
    low, high = torch.aminmax(values.detach())
    return float(torch.maximum(-low, high))
