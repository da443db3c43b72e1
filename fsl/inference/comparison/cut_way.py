"""How what crosses at a cut is written for a request: by a codec, between a trained encoder and decoder where given."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.codecs.codec import Codec
from fsl.codecs.cut_codec import CutCodec
from fsl.errors import ConfigError
from fsl.inference.profiles import Encoding
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, activations_of, as_values
from fsl.split.coding import learned_in


@checks_types(leave=("make", "encoder", "decoder"))
@dataclass(frozen=True)
class CutWay:
    """A codec that `make` builds; `encoder` on the device and `decoder` at the edge, where they were trained with it.

    `rate`: which of several bottleneck units is at work (None: there are not several). ConfigError for a codec with a
    state, since a request knows nothing of the one before, for one that follows the link, whose bytes are not known
    before, and for a trained one whose encoder is not given.
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
        if codec.follows_link:
            raise ConfigError(f"codec {codec.name} sends what the link's rate tells it, which no measurement knows")
        if self.encoder is None and (trained := learned_in(codec)):
            raise ConfigError(f"codec {trained[0].name} is trained; give the run that trained it, as a bottleneck")
        codec.refuse_use("up")

    @property
    def weights(self) -> dict[int, int]:
        """Bytes of each of the encoder's tensors that the device needs, by the tensor's identity."""
        return {} if self.encoder is None else tensor_bytes(self._working(self.encoder))

    def crossed(self, requests: list[Values], first: int = 0) -> tuple[list[Values], Encoding]:
        """Returns requests as the edge reads them, and what a sample took: mean bytes, and median seconds.

        `first`: the number of the first request; each has draws of its own. One call before is not measured.
        ConfigError for a codec that cannot take such a request.
        """
        codec = CutCodec(self.make)
        codec.training = False
        halves = [half for half in (self.encoder, self.decoder) if half is not None]
        sizes, written, read, found = 0, list[float](), list[float](), list[Values]()
        with torch.no_grad(), evaluating(*halves):
            for codes in activations_of(self._encoded(requests[0])):
                self.make().refuse_unfit(codes.shape)
            self._decoded(codec.decode(codec.encode(self._encoded(requests[0]))))
            for number, request in enumerate(requests, first):
                rows = len(request)
                began = time.perf_counter()
                payload = codec.encode(self._encoded(request), number)
                between = time.perf_counter()
                values = self._decoded(codec.decode(payload, number))
                ended = time.perf_counter()
                found.append(_as_shared(values, request))
                sizes += sum(array.nbytes for _, array in payload.named)
                written.append((between - began) / rows)
                read.append((ended - between) / rows)
        count = sum(len(request) for request in requests)
        return found, Encoding(
            factor=0.0, fixed_bytes=sizes / count, encode_seconds=median(written), decode_seconds=median(read)
        )

    def _encoded(self, request: Values) -> Values:
        return request if self.encoder is None else _through(self._working(self.encoder), request)

    def _decoded(self, values: Values) -> Values:
        return values if self.decoder is None else _through(self._working(self.decoder), values)

    def _working(self, half: nn.Module) -> nn.Module:
        """Returns the unit of the rate that is at work."""
        if self.rate is None:
            return half
        units = getattr(half, "units", None)
        if not isinstance(units, nn.ModuleList) or not 0 <= self.rate < len(units):
            raise ConfigError(f"rate={self.rate}: the model has no such bottleneck unit")
        return units[self.rate]


@checks_types()
def tensor_bytes(*modules: nn.Module) -> dict[int, int]:
    """Returns the bytes of each tensor of modules, by its identity, buffers included; what two share counts once."""
    tensors = [tensor for module in modules for tensor in module.state_dict(keep_vars=True).values()]
    return {id(tensor): tensor.nbytes for tensor in tensors}


def _as_shared(values: Values, request: Values) -> Values:
    """Returns values that know which of their tensors all samples share, which no payload tells."""
    if isinstance(values, Tensor) or isinstance(request, Tensor):
        return values
    return replace(values, shared=request.shared)


def _through(module: nn.Module, values: Values) -> Values:
    found = as_values(call(module, values))
    assert found is not None
    return found
