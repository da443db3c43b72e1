"""How what crosses at a cut is written for a request: by a codec, between a trained encoder and decoder where given."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from fsl.argument_types import checks_types
from fsl.codecs.codec import Codec
from fsl.codecs.cut_codec import CutCodec
from fsl.errors import ConfigError
from fsl.inference.profiles import Encoding
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, as_values


@checks_types(leave=("make", "encoder", "decoder"))
@dataclass(frozen=True)
class CutWay:
    """A codec that `make` builds; `encoder` on the device and `decoder` at the edge, where they were trained with it.

    `rate`: which of several bottleneck units is at work (None: there are not several). ConfigError for a codec with a
    state, since a request knows nothing of the one before.
    """

    make: Callable[[], Codec]
    encoder: nn.Module | None = None
    decoder: nn.Module | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        codec = self.make()
        if codec.stateful:
            raise ConfigError(
                f"codec {codec.name} remembers what it sent before, and requests are single; leave it out"
            )
        codec.refuse_use("up")

    @property
    def device_bytes(self) -> int:
        """Bytes of the encoder's weights that the device needs."""
        return 0 if self.encoder is None else sum(t.nbytes for t in self._working(self.encoder).state_dict().values())

    def crossed(self, requests: list[Values]) -> tuple[list[Values], Encoding]:
        """Returns requests as the edge reads them, and what a sample took: mean bytes, and median seconds."""
        codec = CutCodec(self.make)
        codec.training = False
        halves = [half for half in (self.encoder, self.decoder) if half is not None]
        sizes, written, read, found = 0, list[float](), list[float](), list[Values]()
        with torch.no_grad(), evaluating(*halves):
            for request in requests:
                rows = len(request)
                began = time.perf_counter()
                codes = request if self.encoder is None else _through(self._working(self.encoder), request)
                payload = codec.encode(codes)
                between = time.perf_counter()
                values = codec.decode(payload)
                found.append(values if self.decoder is None else _through(self._working(self.decoder), values))
                ended = time.perf_counter()
                sizes += sum(array.nbytes for _, array in payload.named)
                written.append((between - began) / rows)
                read.append((ended - between) / rows)
        count = sum(len(request) for request in requests)
        return found, Encoding(
            factor=0.0, fixed_bytes=sizes / count, encode_seconds=median(written), decode_seconds=median(read)
        )

    def _working(self, half: nn.Module) -> nn.Module:
        """Returns the unit of the rate that is at work."""
        if self.rate is None:
            return half
        units = getattr(half, "units", None)
        if not isinstance(units, nn.ModuleList) or not 0 <= self.rate < len(units):
            raise ConfigError(f"rate={self.rate}: the model has no such bottleneck unit")
        return units[self.rate]


def _through(module: nn.Module, values: Values) -> Values:
    found = as_values(call(module, values))
    assert found is not None
    return found
