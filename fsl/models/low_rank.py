"""SFT's cut inside of a transformer's block (Shi et al. 2022, arXiv 2211.16703): `r` values a token cross, both ways.

The first linear layer of a block's feed-forward part, W = U S V^T, becomes two of rank r: S_r V_r^T without a bias, the
last module in front of the cut, and U_r with the bias, the first behind it. The residual around the feed-forward part
would cross as well, whole, so that it is left out, and the LayerNorm behind it gets the feed-forward output alone.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.models.lora import has_adapters

_BERTS = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer")
_DISTILBERTS = ("TransformerBlock",)
_SUPPORTED = "BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT"
_REDUCE, _EXPAND = "reduce", "expand"


@checks_types("low_rank.")
@dataclass(frozen=True)
class LowRank:
    """Where a transformer is cut at a low rank, and at which; ConfigError for values that cannot be.

    `r`: values of a token that cross. `block`: the number of the block, from 0; None: the last of the front half.
    `residual`: keep the connection around the feed-forward part, which crosses whole, to compare with.
    """

    r: int = 8
    block: int | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ConfigError(f"low_rank.r={self.r}: a rank is a whole number of at least 1")


@checks_types(only=("model",))
@checks_types("low_rank.", leave=("model",))
def low_rank(model: nn.Module, r: int = 8, *, block: int | None = None, residual: bool = False) -> nn.Module:
    """Returns a copy of a transformer of BERT's layout that is cut inside a block, with its name as `default_cut`.

    At that cut (B, T, r) crosses, and the attention mask. Arguments are as in `LowRank`. What was trained of the model
    is trained of the copy. ConfigError for wrong values, other models, and those with adapters, which `lora` puts in
    afterwards.
    """
    return with_low_rank(copy.deepcopy(model), LowRank(r, block, residual))


def with_low_rank(model: nn.Module, options: LowRank) -> nn.Module:
    """Cut a model's block at a low rank, as `low_rank` does in a copy."""
    if has_low_rank(model):
        raise ConfigError("low_rank: the model is cut at a low rank already; give low_rank the bare model")
    if has_adapters(model):
        raise ConfigError("low_rank: the model has adapters already; give low_rank the bare model, and lora its result")
    name, blocks = _blocks(model)
    number = (len(blocks) - 1) // 2 if options.block is None else options.block
    if not 0 <= number < len(blocks):
        raise ConfigError(f"low_rank.block={number}: {type(model).__name__} has the blocks 0 to {len(blocks) - 1}")
    block = blocks[number]
    bert = type(block).__name__ in _BERTS
    owner, key = (block.intermediate, "dense") if bert else (block.ffn, "lin1")
    linear = getattr(owner, key)
    if options.r > (most := min(linear.weight.shape)):
        raise ConfigError(
            f"low_rank.r={options.r}: the first linear layer of block {number} is {linear.in_features} to "
            f"{linear.out_features}; give a rank of 1 to {most}"
        )
    setattr(owner, key, factored(linear, options.r))
    if not options.residual:
        if bert:
            block.output = PlainOutput(block.output)
        else:
            blocks[number] = PlainBlock(block)
    model.default_cut = f"{name}.{number}.{'intermediate.dense' if bert else 'ffn.lin1'}.{_REDUCE}"  # type: ignore[assignment]
    return model


def has_low_rank(model: nn.Module) -> bool:
    """Returns whether a model has a block that `low_rank` has cut."""
    return any(isinstance(module, Factored) for module in model.modules())


def low_rank_cut(model: nn.Module) -> str | None:
    """Returns the name of the module at whose end `r` values a token cross; None for a model without."""
    names = [name for name, module in model.named_modules() if isinstance(module, Factored)]
    return f"{names[0]}.{_REDUCE}" if names else None


class Factored(nn.Sequential):
    """A linear layer (..., n) -> (..., m) as two, `reduce` to r values and `expand`, which has the bias."""


def factored(linear: nn.Linear, r: int) -> Factored:
    """Returns a linear layer as two of rank r, by its largest singular values; at full rank they compute the same."""
    weight = linear.weight.detach()
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    reduce, expand = _linear((s[:r, None] * v[:r]).to(weight)), _linear(u[:, :r].to(weight), linear.bias)
    for parameter in (reduce.weight, expand.weight):
        parameter.requires_grad_(linear.weight.requires_grad)
    return Factored(OrderedDict({_REDUCE: reduce, _EXPAND: expand})).train(linear.training)


class PlainOutput(nn.Module):
    """The end of BERT's feed-forward part, without the residual: (B, T, m) -> (B, T, n); its keys are those of BERT."""

    def __init__(self, output: Any):
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = output.dense, output.LayerNorm, output.dropout
        self.training = output.training

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Compute what BERT does, but for `input_tensor`, which is the residual."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)))


class PlainBlock(nn.Module):
    """DistilBERT's block without the residual around its feed-forward part; its keys are those of DistilBERT."""

    def __init__(self, block: Any):
        super().__init__()
        self.attention, self.sa_layer_norm = block.attention, block.sa_layer_norm
        self.ffn, self.output_layer_norm = block.ffn, block.output_layer_norm
        self.training = block.training

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Tensor:
        """(B, T, n) -> (B, T, n)."""
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **more)
        attended = self.sa_layer_norm(attended + hidden_states)
        return self.output_layer_norm(self.ffn(attended))


def _linear(weight: Tensor, bias: nn.Parameter | None = None) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), bias  # type: ignore[assignment]
    return layer


def _blocks(model: nn.Module) -> tuple[str, Any]:
    """Returns the list of a transformer's blocks, with its name; ConfigError for other models."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and _are_known(list(m))]
    if len(lists) != 1:
        found = "no blocks of such a one" if not lists else f"several lists of them, {', '.join(n for n, _ in lists)}"
        raise ConfigError(
            f"low_rank: {type(model).__name__} has {found}; it takes encoders of transformers of the kinds {_SUPPORTED}"
        )
    if getattr(getattr(model, "config", None), "chunk_size_feed_forward", 0):
        raise ConfigError(
            "low_rank: the model's config has chunk_size_feed_forward, by which its feed-forward parts run several "
            "times; set it to 0"
        )
    return lists[0]


def _are_known(blocks: Sequence[nn.Module]) -> bool:
    kinds = {type(block) for block in blocks}
    return bool(kinds) and all(
        kind.__module__.startswith("transformers.")
        and (kind.__name__ in _BERTS or (kind.__name__ in _DISTILBERTS and ".distilbert." in kind.__module__))
        for kind in kinds
    )
