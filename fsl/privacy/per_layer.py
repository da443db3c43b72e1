"""Per-layer clipping of DP-SGD."""

import math

from torch import Tensor

from fsl.privacy.clip_rules import ClipRule


class PerLayer(ClipRule):
    """Each of the L layers' part of a sample's gradient is clipped to C / sqrt(L), so that the whole is at most C long.

    McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models", on per-layer in place of flat
    clipping. Layers are counted in each segment for itself; weight and bias of a module are one layer.
    """

    def factors(self, norms: Tensor, clip: float) -> Tensor:
        """What each layer of each sample's gradient is multiplied by, (B, L)."""
        own = clip / math.sqrt(norms.shape[1])
        return (own / (norms + 1e-6)).clamp(max=1.0)
