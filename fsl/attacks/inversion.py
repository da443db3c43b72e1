"""Inversion of smashed data by a trained decoder."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn import functional as F

from fsl import seeds
from fsl.attacks.attack import Attack, Finding, Target, above_zero, at_least_one, reconstruction
from fsl.attacks.networks import Decoder, drawn_from
from fsl.attacks.sights import Sights


@dataclass(frozen=True)
class Inversion(Attack):
    """An edge that can ask the front: it learns a decoder from data of its own, and decodes a device's smashed data.

    The black-box attack of He, Zhang & Lee 2019, "Model Inversion Attacks against Collaborative Inference". The edge
    sees each row once a pass in every round, and noise is new each time: the decoder gets all sights of a row together,
    each with its own round's front, noise included. `sights`: the last ones only (null: all; where there is no noise,
    one is enough). `steps` of `batch_size` rows, the rate annealed to zero; `samples`: the rows that are reconstructed.
    """

    steps: int = 2000
    batch_size: int = 64
    lr: float = 0.001
    samples: int = 256
    sights: int | None = None

    adversary: ClassVar[str] = "edge"
    tails: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least_one(steps=self.steps, batch_size=self.batch_size, samples=self.samples, sights=self.sights)
        above_zero(lr=self.lr)

    def run(self, target: Target) -> Finding:
        """Train the decoder on what the adversary knows, then decode."""
        known, sights = target.known, Sights(target, self.sights if target.noise_std else 1)
        victims, _ = target.victims(self.samples)
        seen = sights(victims)
        with drawn_from(target.seed, "attack", "decoder"):
            decoder = Decoder(seen.shape[1:], victims.shape[1:])
        optimizer = torch.optim.Adam(decoder.parameters(), lr=self.lr)
        annealed = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        draw = seeds.torch_generator(target.seed, "attack-batches")
        for _ in range(self.steps):
            rows = torch.randint(len(known), (self.batch_size,), generator=draw)
            shown = target.pixels.shown(known.batch(rows)[0])
            loss = F.mse_loss(decoder(sights.of_known(known, rows)), shown)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            annealed.step()
        decoder.eval()
        with torch.no_grad():
            found = reconstruction(target, decoder(seen), victims)
        return replace(found, figures={**found.figures, "sights": sights.number})
