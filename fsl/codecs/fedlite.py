"""Sends of each row's parts which centroids of this batch they are near to (FedLite)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.clustering import k_means, nearest
from fsl.codecs.codec import Codec, Payload
from fsl.codecs.palette import palette_payload, read_palette
from fsl.errors import ConfigError, RunError, WireError

_MOST_CODES = 1 << 16
_MOST_ITERATIONS = 100


class FedLite(Codec):
    """Product quantization by k-means on the batch: a row of D values is cut into `parts` subvectors.

    The parts of a row are divided into `groups` that follow each other, and the B * parts / groups subvectors of a
    group share up to `codes` centroids of D / parts values, which travel with the batch (`half`: in float16); of each
    subvector travels an index of ceil(log2 codes) bits. The first centroids are drawn by session and step; so many
    `iterations` of Lloyd's follow. Rows depend on each other: no privacy by sample takes it. RunError for values that
    are not finite.

    Gradients go straight through. `correction`, the paper's lambda: a device adds lambda * (z - z~) to the cut gradient
    at its smashed data z, of which z~ is decoded; that is the gradient of lambda / 2 * |z - z~|^2, summed over the
    batch, and keeps smashed data near to centroids.

    Wang et al. 2022, "FedLite: A Scalable Approach for Federated Learning on Resource-constrained Clients" (arXiv
    2201.11865): the grouped quantizer, and the gradient correction.
    """

    name: ClassVar[str] = "fedlite"

    @checks_types("fedlite.")
    def __init__(
        self,
        parts: int = 16,
        codes: int = 16,
        groups: int = 1,
        iterations: int = 10,
        correction: float = 0.0,
        half: bool = False,
    ) -> None:
        if parts < 1:
            raise ConfigError(f"parts={parts!r}: how many subvectors a row is cut into, 1 or more")
        if not 1 <= codes <= _MOST_CODES:
            raise ConfigError(f"codes={codes!r}: the centroids of a group, 1 to {_MOST_CODES}")
        if groups < 1 or parts % groups:
            raise ConfigError(f"groups={groups!r}: a row's {parts} parts are divided into them; give a divisor of it")
        if not 1 <= iterations <= _MOST_ITERATIONS:
            raise ConfigError(f"iterations={iterations!r}: of k-means on a batch, 1 to {_MOST_ITERATIONS}")
        if not 0 <= correction < float("inf"):
            raise ConfigError(f"correction={correction!r}: lambda of the gradient correction, 0 or more")
        self.parts, self.codes, self.groups = parts, codes, groups
        self.iterations, self.strength, self.half = iterations, correction, half

    @property
    def corrects(self) -> bool:
        """Whether lambda is above 0."""
        return self.strength > 0

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for rows that cannot be cut into so many equal parts."""
        size = shape[1:].numel()
        if not size or size % self.parts:
            raise ConfigError(f"parts={self.parts}: a row has {size} values; give a divisor of it")

    def encode(self, values: Tensor) -> Payload:
        """Returns the centroids (groups, K, D / parts), K = min(codes, B * parts / groups), and packed indices."""
        self.refuse_unfit(values.shape)
        dtype = torch.float16 if self.half else values.dtype
        vectors = self._vectors(values.to(torch.promote_types(values.dtype, torch.float32)))
        largest = vectors.abs().max() if vectors.numel() else vectors.new_ones(())
        if not bool(largest.isfinite()):
            raise RunError(
                "codec fedlite got a value that is not finite; training has diverged: lower the learning rate"
            )
        scale = torch.ldexp(torch.ones_like(largest), largest.frexp().exponent - 1)  # a power of 2: no rounding
        vectors = vectors / scale  # whose squares stay within the dtype
        book = k_means(vectors, self.codes, self.iterations, self.generator()) * scale
        book = book.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
        places, _ = nearest(vectors, book.to(vectors.dtype) / scale)
        return palette_payload(self.name, values.dtype, book, places, values.shape)

    def decode(self, payload: Payload) -> Tensor:
        """Returns the centroid of each subvector in its place, in the dtype that was encoded."""
        dtype = payload.dtype
        shape = self.check_size(payload.shape, dtype)
        size = shape[1:].numel()
        if not shape or not size or size % self.parts:
            raise WireError(f"codec 'fedlite' cuts rows into {self.parts} parts; it got values of shape {tuple(shape)}")
        wanted = self.groups, shape[0] * (self.parts // self.groups), size // self.parts
        vectors = read_palette(self.name, payload, wanted, torch.float16 if self.half else dtype, self.codes)
        return vectors.view(self.groups, shape[0], size // self.groups).transpose(0, 1).reshape(shape).to(dtype)

    def correction(self, values: Tensor, decoded: Tensor) -> Tensor:
        """Returns lambda * (z - z~)."""
        return self.strength * (values - decoded)

    def _vectors(self, values: Tensor) -> Tensor:
        """Returns the subvectors (groups, B * parts / groups, D / parts) of values (B, ...)."""
        size = values.shape[1:].numel()
        return (
            values.reshape(len(values), self.groups, size // self.groups)
            .transpose(0, 1)
            .reshape(self.groups, len(values) * (self.parts // self.groups), size // self.parts)
        )
