"""Measures during an evaluation what a front's smashed data tell of its inputs."""

import torch
from torch import nn

from fsl.data import Examples
from fsl.privacy.leakage import distance_correlation, mutual_information
from fsl.privacy.noise import noise_source
from fsl.privacy.private_cut import clipped, noised
from fsl.privacy.settings import Probe
from fsl.segments.modes import evaluating

LEAKS = ("distance_correlation", "mutual_information")  # of inputs and smashed data


def leaks(front: nn.Module, examples: Examples, probe: Probe, round: int, device: int = -1) -> dict[str, float]:
    """Returns distance correlation and mutual information of test inputs and what a front makes of them.

    Measures smashed data as the edge sees them; `round` and `device` say which noise they get.
    """
    smashed, inputs = [], []
    with evaluating(front), torch.no_grad():
        for rows in torch.arange(min(probe.rows, len(examples))).split(512):
            batch, _ = examples.batch(rows)
            inputs.append(batch)
            smashed.append(front(batch.to(_place(front))).cpu())
    one, other = torch.cat(inputs), torch.cat(smashed)
    if probe.cut is not None:
        source = noise_source(False, probe.seed, "cut-noise", device=device, round=round)
        other = noised(clipped(other, probe.cut.clip), probe.cut, source, step=0)
    return dict(zip(LEAKS, (float(distance_correlation(one, other)), mutual_information(one, other))))


def _place(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
