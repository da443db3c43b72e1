"""A trained code book at the cut: vectors become the codes nearest to them, and their indices travel."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.codecs.codec import Payload
from fsl.codecs.learned import Learned
from fsl.codecs.palette import distinct, palette_payload, read_palette
from fsl.codecs.places import channel_axis, refuse_shape
from fsl.codecs.vq_modules import Quantizer, projection
from fsl.errors import ConfigError, WireError

_MOST_CODES = 1 << 16
_MOST_WIDTH = 1 << 12


class VQ(Learned):
    """A quantizer whose book of `codes` vectors of `dim` values is trained with the front (VQ-VAE, EfficientFi).

    Encoder: a 1x1 projection to `dim` channels, left out where the cut has so many, then at each place the nearest
    code. Decoder: a projection back, left out likewise. Places are those of images (B, C, H, W) or tokens (B, T, D);
    features (B, D) are one place each. The loss is the task's, plus mean (sg(z) - e)^2, which moves codes e to what
    they stand for, plus `commitment` times mean (z - sg(e))^2, which keeps the encoder's values z near to their codes;
    sg stops gradients. The task's gradient at a code goes straight through to z. `restart`: a code that has
    lately had less than a tenth of its equal share of vectors moves to a vector of the batch.

    On the link a batch is a palette of the codes that occur in it, and indices of ceil(log2 of their count) bits into
    that: what is decoded are the codes to the bit, without a book at the edge. So rows depend on each other, bytes on
    what is sent, and no privacy by sample takes it.

    Van den Oord et al. 2017, "Neural Discrete Representation Learning" (arXiv 1711.00937), eq. 3, with means in place
    of sums; Yang et al. 2022, "EfficientFi: Towards Large-Scale Lightweight WiFi Sensing via CSI Compression" (arXiv
    2204.04138), whose defaults these are.
    """

    name: ClassVar[str] = "vq"
    rowwise: ClassVar[bool] = False
    fixed_size: ClassVar[bool] = False
    coded: ClassVar[bool] = True

    @checks_types("vq.")
    def __init__(self, codes: int = 512, dim: int = 32, commitment: float = 1.0, restart: bool = True) -> None:
        if not 2 <= codes <= _MOST_CODES:
            raise ConfigError(f"codes={codes!r}: how many vectors the book has, 2 to {_MOST_CODES}")
        if not 1 <= dim <= _MOST_WIDTH:
            raise ConfigError(f"dim={dim!r}: how many values a code has, 1 to {_MOST_WIDTH}")
        if not 0 <= commitment < float("inf"):
            raise ConfigError(f"commitment={commitment!r}: weight of the encoder's distance to its codes, 0 or more")
        self.codes, self.dim, self.commitment, self.restart = codes, dim, commitment, restart

    def modules(self, shape: torch.Size) -> tuple[nn.Module, nn.Module]:
        """Returns encoder and decoder for images (B, C, H, W), features (B, D) or tokens (B, T, D)."""
        refuse_shape(self.name, shape)
        channels = shape[channel_axis(len(shape))]
        quantizer = Quantizer(self.codes, self.dim, self.commitment, self.restart)
        if channels == self.dim:
            return quantizer, nn.Identity()
        return (
            nn.Sequential(projection(len(shape), channels, self.dim), quantizer),
            projection(len(shape), self.dim, channels),
        )

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for codes of another width."""
        if len(shape) not in (2, 3, 4) or shape[channel_axis(len(shape))] != self.dim:
            raise ConfigError(f"dim={self.dim}: codes of shape {tuple(shape)} have another width")

    def encode(self, values: Tensor) -> Payload:
        """Returns the distinct vectors (1, K, dim) of values (B, ...), and packed indices; takes any values."""
        self.refuse_unfit(values.shape)
        vectors = values.detach().movedim(channel_axis(values.dim()), -1)
        book, places = distinct(vectors.reshape(-1, self.dim))
        return palette_payload(self.name, values.dtype, book.unsqueeze(0), places.unsqueeze(0), values.shape)

    def decode(self, payload: Payload) -> Tensor:
        """Returns the values to the bit; WireError for what `encode` does not make."""
        shape = self.check_size(payload.shape, payload.dtype)
        axis = channel_axis(len(shape))
        if len(shape) not in (2, 3, 4) or shape[axis] != self.dim:
            raise WireError(f"codec 'vq' sends vectors of {self.dim} values; it got values of shape {tuple(shape)}")
        count = shape.numel() // self.dim
        vectors = read_palette(self.name, payload, (1, count, self.dim), payload.dtype, count)
        places = shape[:axis] + shape[axis:][1:]
        return vectors.view(*places, self.dim).movedim(-1, axis).contiguous()
