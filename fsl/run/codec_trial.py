"""A codec tried once on values of the kind that it is to carry, so that a broken one fails before the first round."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload
from fsl.errors import ConfigError, WireError
from fsl.faults import said
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import read_upload, upload_frame
from fsl.messages.heads import read_frame

_SEED = 0


def try_codec(name: str, make: Callable[[], Codec], values: Tensor) -> None:
    """Encode and decode `values` (B, ...) as a session does; ConfigError for what breaks the contract of `Codec`.

    `name` is what errors call the codec ("codec.up=my.TopK"). What is decoded must have the shape and dtype that was
    encoded, by an object that knows nothing but the payload; input and payload stay as they are; `rowwise` and
    `stateful` must be true.
    """
    trial = _Trial(name, make)
    payload = trial.encode(make(), values)
    trial.check_payload(payload, values)
    trial.check_decoded(trial.decode(make(), payload), values)
    trial.check_decoded(trial.decode(make(), trial.sent(payload)), values)
    trial.check_memory(values)
    if make().rowwise:
        trial.check_rows(values)


class _Trial:
    def __init__(self, name: str, make: Callable[[], Codec]):
        self.name = name
        self.make = make
        self.kind = type(make())

    def encode(self, codec: Codec, values: Tensor) -> Payload:
        """What a codec makes of values; it must not change them."""
        before = values.clone()
        payload = self._call("encode", codec.encode, values)
        if not isinstance(payload, Payload):
            raise self._broken("encode", f"it returned a {type(payload).__name__}, and must return a Payload")
        if not _same(values, before):
            raise self._broken("encode", "it changed the tensor that it was given; work on a copy")
        return payload

    def decode(self, codec: Codec, payload: Payload) -> Any:
        """What a codec makes of a payload; it must not change it."""
        before = [tensor.clone() for _, tensor in payload.arrays]
        decoded = self._call("decode", codec.decode, payload)
        if not all(_same(tensor, old) for (_, tensor), old in zip(payload.arrays, before)):
            raise self._broken("decode", "it changed the payload that it was given; work on a copy")
        return decoded

    def check_payload(self, payload: Payload, values: Tensor) -> None:
        """A payload names its codec, and has arrays that the wire carries."""
        declared = getattr(self.kind, "name", None)
        if not isinstance(declared, str) or payload.codec != declared:
            raise self._broken(
                "encode", f"its payload names codec {payload.codec!r}, and the class has name = {declared!r}"
            )
        tensors = all(
            isinstance(array, tuple) and len(array) == 2 and isinstance(array[0], str) and isinstance(array[1], Tensor)
            for array in payload.arrays
        )
        if not isinstance(payload.arrays, tuple) or not tensors:
            raise self._broken("encode", "a payload's arrays are a tuple of pairs (name, tensor)")
        try:
            self.sent(payload)
        except WireError as error:
            raise self._broken("encode", str(error)) from None
        apart = [name for name, t in payload.arrays if t.numel() and (not t.dim() or len(t) != len(values))]
        if self.make().rowwise and apart:
            raise self._broken(
                "encode", f"rowwise = True, and array {apart[0]!r} has no row for each of the {len(values)} rows"
            )

    def sent(self, payload: Payload) -> Payload:
        """A payload as it arrives over the wire."""
        message, data = read_frame(upload_frame(0, 1, 0, payload, None), pb.ToEdge)
        return read_upload(message.upload, data)[0]

    def check_decoded(self, decoded: Any, values: Tensor) -> None:
        """Shape and dtype are those of what was encoded."""
        if not isinstance(decoded, Tensor):
            raise self._broken("decode", f"it returned a {type(decoded).__name__}, and must return a tensor")
        if (decoded.shape, decoded.dtype) != (values.shape, values.dtype):
            raise self._broken(
                "decode",
                f"it returned {decoded.dtype} of shape {tuple(decoded.shape)} for {values.dtype} of shape "
                f"{tuple(values.shape)}",
            )

    def check_memory(self, values: Tensor) -> None:
        """What a codec makes of values follows from them, from its arguments, and where it says so from its past."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            once = self.encode(self.make(), values)
            torch.manual_seed(_SEED + 1)
            anew = self.encode(self.make(), values)
        if not _alike(once, anew):
            raise self._broken(
                "encode",
                "two codecs with equal arguments made different payloads of the same values; draw from a "
                "torch.Generator of the codec's own, seeded by its arguments",
            )
        codec = self.make()
        again = [self.encode(codec, values) for _ in range(2)]
        if not codec.stateful and not _alike(*again):
            raise self._broken("encode", "its second payload of the same values is another: set stateful = True")
        codec = self.make()
        if not codec.stateful and not _same(*(self.decode(codec, once) for _ in range(2))):
            raise self._broken("decode", "it decoded the same payload differently: set stateful = True")

    def check_rows(self, values: Tensor) -> None:
        """Another value in one row changes no other row."""
        whole = self.decode(self.make(), self.encode(self.make(), values))
        for row in range(len(values)):
            others = torch.arange(len(values)) != row
            for factor in (-1, 1000, 0):
                changed = values.clone()
                changed[row] *= factor
                decoded = self.decode(self.make(), self.encode(self.make(), changed))
                if not _same(decoded[others], whole[others]):
                    raise self._broken(
                        "encode", "rowwise = True, and another value in one row changes what becomes of the others"
                    )

    def _call(self, method: str, function: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return function(argument)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[1:]
            own = [f for f in frames if f.filename == _place(self.kind, method)[0]] or frames[-1:]
            where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
            got = f" of {argument.dtype} {tuple(argument.shape)}" if isinstance(argument, Tensor) else ""
            reason = said(error)
            raise ConfigError(f"{self.name}: {method}{got} failed: {reason}{where}") from error

    def _broken(self, method: str, what: str) -> ConfigError:
        file, line = _place(self.kind, method)
        return ConfigError(f"{self.name}: {method}: {what}{f' ({file}:{line})' if file else ''}")


def _place(kind: type, method: str) -> tuple[str, int]:
    code = getattr(getattr(kind, method), "__code__", None)
    return ("", 0) if code is None else (code.co_filename, code.co_firstlineno)


def _alike(one: Payload, other: Payload) -> bool:
    return [name for name, _ in one.arrays] == [name for name, _ in other.arrays] and all(
        _same(a, b) for (_, a), (_, b) in zip(one.arrays, other.arrays)
    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, NaN like NaN."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
