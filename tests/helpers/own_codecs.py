"""Codecs as users write them: good ones with arguments and state, and ones that are broken in one way each."""

from dataclasses import dataclass

import torch

from fsl.codecs import Codec, Payload, pack


class Largest(Codec):
    """Of each row the share `k` of values that are largest, the others zero."""

    name = "largest"
    rowwise = True

    def __init__(self, k: float = 0.5):
        self.k = k

    def encode(self, values):
        flat = values.flatten(1)
        count = max(1, round(self.k * flat.shape[1]))
        places = flat.abs().topk(count, dim=1).indices.sort(dim=1).values
        mask = torch.zeros_like(flat, dtype=torch.bool).scatter(1, places, True)
        return pack("largest", values.dtype, ("mask", mask.view(values.shape)), ("values", flat.gather(1, places)))

    def decode(self, payload):
        mask, values = payload.unpack("largest", mask=torch.bool, values=payload.dtype)
        return values.new_zeros(mask.shape).masked_scatter(mask, values)


class ErrorFeedback(Codec):
    """Rounds to multiples of `step`; what rounding took from a batch is added to the next one of equal shape."""

    name = "feedback"
    stateful = True

    def __init__(self, step: float = 0.25):
        self.step = step
        self._left = None

    def encode(self, values):
        if self._left is not None and self._left.shape == values.shape:
            values = values + self._left
        sent = (values / self.step).round() * self.step
        self._left = values - sent
        return pack("feedback", values.dtype, ("values", sent))

    def decode(self, payload):
        return payload.arrays[0][1]


class Delta(ErrorFeedback):
    """Sends the difference from the batch before, where it is of equal shape: both halves remember."""

    name = "delta"

    def encode(self, values):
        before = self._left
        self._left = values.clone()
        first = before is None or before.shape != values.shape
        sent = values if first else values - before
        return Payload("delta", (("values", sent), ("first", torch.tensor([first]))))

    def decode(self, payload):
        sent, first = (array for _, array in payload.arrays)
        self._left = sent.clone() if bool(first) else self._left + sent
        return self._left.clone()


class Plain(Codec):
    """As Identity, under a name of its own."""

    name = "plain"
    rowwise = True

    def encode(self, values):
        return Payload("plain", (("values", values),))

    def decode(self, payload):
        return payload.arrays[0][1]


class ReturnsTensor(Plain):
    def encode(self, values):
        return values


class NamesAnother(Plain):
    def encode(self, values):
        return Payload("other", (("values", values),))


class Raises(Plain):
    def decode(self, payload):
        return payload.arrays[7][1]


class AnotherShape(Plain):
    def decode(self, payload):
        return payload.arrays[0][1].flatten()


class AnotherDtype(Plain):
    def decode(self, payload):
        return payload.arrays[0][1].double()


class OneScale(Plain):
    """Claims `rowwise`, and divides by the batch's largest value."""

    def encode(self, values):
        return Payload("plain", (("values", values / values.abs().max().clamp(min=1e-9)),))


class NoRows(Plain):
    """Claims `rowwise`, and has an array without a row for each row."""

    def encode(self, values):
        return Payload("plain", (("values", values), ("scale", torch.ones(3))))


class HiddenState(Plain):
    stateful = False

    def __init__(self):
        self.calls = 0

    def encode(self, values):
        self.calls += 1
        return Payload("plain", (("values", values / self.calls),))


class HiddenMemory(Plain):
    """Its other half reads what only the encoder knows."""

    def encode(self, values):
        self.kept = values
        return Payload("plain", (("rows", torch.ones(len(values))),))

    def decode(self, payload):
        return self.kept


class Random(Plain):
    def encode(self, values):
        return Payload("plain", (("values", values + torch.rand(values.shape)),))


class InPlace(Plain):
    def encode(self, values):
        return Payload("plain", (("values", values.mul_(2)),))


class Complex(Plain):
    def encode(self, values):
        return Payload("plain", (("values", values.to(torch.complex64)),))


class Takes(Plain):
    """Takes whatever it is given."""

    def __init__(self, what: object = None):
        self.what = what


@dataclass(frozen=True)
class Frozen(Largest):
    """As Largest, as a dataclass."""

    k: float = 0.5


class Open(Plain):
    """Takes any option."""

    def __init__(self, **options: float):
        self.options = options


class Places(Plain):
    """Takes arguments that have no names."""

    def __init__(self, *places: int):
        self.places = places


class NoDecode(Codec):
    name = "none"

    def encode(self, values):
        return Payload("none", ())


class FailsOnNoRows(Plain):
    def encode(self, values):
        values.max()
        return Payload("plain", (("values", values),))
