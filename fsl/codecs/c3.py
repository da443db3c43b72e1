"""Sends several rows as one: the sum of their circular convolutions with fixed keys (C3-SL)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.codecs.through import Codes, Through
from fsl.errors import ConfigError, WireError


class C3(Through):
    """Batch-wise compression: `ratio` rows travel as one, and so does their cut gradient.

    Rows z_i of D values become V = sum_i k_i (*) z_i, circular convolutions with keys that both ends draw from `seed`;
    row i is restored by correlating V with k_i. Error energy, relative to that of zero-mean rows: about `ratio` with
    keys of N(0, 1/D) and length 1, as in the paper, and `ratio` - 1 with `unit` keys, whose spectrum has modulus 1. A
    last group of fewer rows is filled with zeros. Rows depend on each other: no privacy by sample takes it.

    Hsieh et al. 2022, "C3-SL: Circular Convolution-Based Batch-Wise Compression for Communication-Efficient Split
    Learning" (arXiv 2207.12397); by the FFT, in O(D log D) a row where direct convolution takes O(D^2).
    """

    name: ClassVar[str] = "c3"

    @checks_types("c3.")
    def __init__(self, ratio: int = 4, seed: int = 0, unit: bool = False) -> None:
        if ratio < 1:
            raise ConfigError(f"ratio={ratio!r}: how many rows travel as one, 1 or more")
        self.ratio, self.seed, self.unit = ratio, seed, unit
        self._spectra: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError for a ratio beyond the batch, of which most would be zeros."""
        if self.ratio > shape[0]:
            raise ConfigError(f"ratio={self.ratio}: so many rows travel as one, and a batch has {shape[0]}; lower it")

    def project(self, values: Tensor) -> Codes:
        """Returns (ceil(B / ratio), D) codes of values (B, ...) of D numbers a row."""
        rows = values.flatten(1)
        if not len(rows):  # FFTs take no empty batch
            return Codes(rows)
        missing = -len(rows) % self.ratio
        padded = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows
        spectra = torch.fft.rfft(_wide(padded)).unflatten(0, (-1, self.ratio))
        bound = (spectra * self._keys(rows.shape[1], spectra)).sum(dim=1)
        return Codes(torch.fft.irfft(bound, n=rows.shape[1]).to(values.dtype))

    def restore(self, codes: Codes, shape: torch.Size) -> Tensor:
        """Returns values of this shape (B, ...) from codes (ceil(B / ratio), D)."""
        given = codes.values
        size = shape[1:].numel()
        if given.dim() != 2 or not size or given.shape != (-(-shape[0] // self.ratio), size) or codes.beside:
            raise WireError(f"codec 'c3' got codes of shape {tuple(given.shape)} for values of shape {tuple(shape)}")
        self.check_size(shape, given.dtype)
        if not len(given):
            return given.reshape(shape)
        spectra = torch.fft.rfft(_wide(given)).unsqueeze(1)
        rows = torch.fft.irfft(spectra * self._keys(size, spectra).conj(), n=size).flatten(0, 1)
        return rows[: shape[0]].reshape(shape).to(given.dtype)

    def _keys(self, size: int, like: Tensor) -> Tensor:
        """Returns the spectra of the keys (ratio, size // 2 + 1)."""
        place = size, like.dtype, like.device
        if place not in self._spectra:
            generator = seeds.torch_generator(self.seed, "c3-keys", step=size)
            keys = torch.randn(self.ratio, size, generator=generator, dtype=torch.float64)
            spectra = torch.fft.rfft(keys / keys.norm(dim=1, keepdim=True))
            if self.unit:
                spectra = spectra / spectra.abs()
            self._spectra[place] = spectra.to(like.dtype).to(like.device)
        return self._spectra[place]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
