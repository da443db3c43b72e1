"""Split learning by local losses: devices do not wait for cut gradients (Han et al. 2021)."""

from fsl.strategies.split_strategy import SplitStrategy
from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.trainers import Decoupled


class DecoupledSL(SplitStrategy):
    """Each device trains its front by the loss of its own small head; nothing comes down from the edge.

    The edge trains a replica of the back per device on the front's uploads. The cloud averages fronts, heads and
    replicas with weights n_k/n each round. The head pools smashed data (B, C, H, W) to `pool` x `pool` (it flattens
    others), and has a linear layer, with a hidden one of `hidden` units before it where that is not 0. It is no part of
    the model: `head.safetensors` has it. Source: Han et al. 2021, "Accelerating Federated Learning with Split Learning
    on Locally Generated Losses", ICML workshop on federated learning.
    """

    fronts = "averaged"
    local_loss = True

    def __init__(self, pool: int = 4, hidden: int = 0):
        super().__init__()
        if pool < 1:
            raise ConfigError(f"pool={pool}: smashed data are pooled to pool x pool positions, at least 1")
        if hidden < 0:
            raise ConfigError(f"hidden={hidden}: a number of hidden units, 0 for a linear head")
        self.pool = pool
        self.hidden = hidden

    def trainer(self, round: int) -> Spec:
        """Returns the trainer of a replica of the back per device, which sends no replies."""
        return Spec(self.path(Decoupled))

    def head(self, smashed: Tensor, outputs: Tensor) -> nn.Module:
        """Returns pooling and one or two linear layers, to outputs (B, classes)."""
        if outputs.dim() != 2:
            raise ConfigError(
                f"the model's outputs are of shape {tuple(outputs.shape)}; this head makes (B, classes): override "
                "DecoupledSL.head for others"
            )
        first = (
            nn.AdaptiveAvgPool2d(self.pool) if smashed.dim() == 4 and smashed.shape[-1] > self.pool else nn.Identity()
        )
        features = first(smashed).flatten(1).shape[1]
        if not self.hidden:
            return nn.Sequential(first, nn.Flatten(), nn.Linear(features, outputs.shape[1]))
        return nn.Sequential(
            first, nn.Flatten(), nn.Linear(features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, outputs.shape[1])
        )
