"""Inversion of smashed data by a trained decoder."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from fsl import seeds
from fsl.attacks.base import Attack, Finding, Target, above_zero, at_least_one, reconstruction
from fsl.attacks.networks import Decoder, drawn_from


@dataclass(frozen=True)
class Inversion(Attack):
    """An edge that can ask the front: it learns a decoder from data of its own, and decodes a device's smashed data.

    The black-box attack of He, Zhang & Lee 2019, "Model Inversion Attacks against Collaborative Inference". The decoder
    learns from smashed data as the edge sees them, noise included. `steps` of `batch_size` rows; `samples`: the rows
    that are reconstructed.
    """

    steps: int = 2000
    batch_size: int = 64
    lr: float = 0.001
    samples: int = 256

    adversary: ClassVar[str] = "edge"

    def __post_init__(self) -> None:
        at_least_one(steps=self.steps, batch_size=self.batch_size, samples=self.samples)
        above_zero(lr=self.lr)

    def run(self, target: Target) -> Finding:
        """Train the decoder on what the adversary knows, then decode."""
        known = target.known
        inputs = known.batch(torch.arange(1))[0]
        with drawn_from(target.seed, "attack", "decoder"):
            decoder = Decoder(target.smashed(inputs, 0).shape[1:], inputs.shape[1:])
        optimizer = torch.optim.Adam(decoder.parameters(), lr=self.lr)
        draw = seeds.torch_generator(target.seed, "attack-batches")
        for step in range(self.steps):
            inputs, _ = known.batch(torch.randint(len(known), (self.batch_size,), generator=draw))
            loss = F.mse_loss(decoder(target.smashed(inputs, 1 + step)), target.pixels.shown(inputs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        victims, _ = target.victims(self.samples)
        decoder.eval()
        with torch.no_grad():
            return reconstruction(target, decoder(target.smashed(victims, 0)), victims)
