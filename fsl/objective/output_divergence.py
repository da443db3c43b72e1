"""How far one model's probabilities are from another's: what distillation minimises."""

from torch import Tensor
from torch.nn.functional import kl_div


def divergence(outputs: Tensor, wanted: Tensor, class_dim: int = 1, temperature: float = 1.0) -> Tensor:
    """Returns T^2 KL(wanted || outputs) of logits at temperature T, a mean over samples and their further places.

    Hinton et al. 2015 (arXiv 1503.02531), section 2. `wanted` gets no gradient.
    """
    told, given = (
        (logits / temperature).movedim(class_dim, -1).log_softmax(-1) for logits in (wanted.detach(), outputs)
    )
    classes = told.shape[-1]
    apart = kl_div(given.reshape(-1, classes), told.reshape(-1, classes), reduction="batchmean", log_target=True)
    return apart * temperature**2
