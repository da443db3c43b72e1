"""Heads compute what they are called, at the multiply-adds that their sizes say."""

import pytest
import torch
from torch import nn

from fsl.costs.work_counting import macs_of
from fsl.errors import ConfigError
from fsl.inference.exits import ConvExit, FusionExit, LinearExit, MLPExit, SLViTExit, width_for_macs
from fsl.inference.exits.head_widths import head_macs
from fsl.inference.exits.single_layer_vit import SingleLayerViT

IMAGES, TOKENS, FEATURES = (6, 8, 8), (5, 6), (6,)
ALL = [LinearExit(), MLPExit(7, 3), ConvExit(9), SLViTExit(8, heads=2)]


@pytest.mark.parametrize("head", ALL, ids=lambda head: head.kind)
@pytest.mark.parametrize("shape", [IMAGES, TOKENS])
def test_every_head_takes_images_and_tokens(head, shape):
    assert head.build([shape], (3,)).eval()(torch.randn(4, *shape)).shape == (4, 3)


def test_outputs_have_the_models_shape():
    assert MLPExit().build([IMAGES], (2, 5, 5)).eval()(torch.randn(4, *IMAGES)).shape == (4, 2, 5, 5)


def test_a_linear_exit_is_a_linear_layer_of_the_mean_over_positions():
    head, values = LinearExit().build([IMAGES], (3,)), torch.randn(4, *IMAGES)
    layer = next(module for module in head.modules() if isinstance(module, nn.Linear))
    torch.testing.assert_close(head(values), layer(values.mean((2, 3))))


def test_an_mlp_keeps_where_things_are_on_its_grid():
    head = MLPExit(width=4, grid=2).build([(1, 4, 4)], (3,))
    values = torch.zeros(1, 1, 4, 4)
    values[0, 0, 2:, :2] = 1.0  # the third of four places
    hidden = next(module for module in head.modules() if isinstance(module, nn.Linear))
    torch.testing.assert_close(head[:2](values)[0], hidden.weight[:, 2] + hidden.bias)


def test_a_fusion_exit_depends_on_every_branch():
    head = FusionExit(4).build([IMAGES, (2, 3, 3)], (3,))
    first, second = torch.randn(2, *IMAGES), torch.randn(2, 2, 3, 3)
    base = head(first, second)
    assert not torch.allclose(base, head(torch.zeros_like(first), second))
    assert not torch.allclose(base, head(first, torch.zeros_like(second)))


def as_encoder_layer(layer: SingleLayerViT, width: int) -> nn.TransformerEncoderLayer:
    """Torch's encoder layer with the same weights."""
    encoder = nn.TransformerEncoderLayer(width, layer.heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        encoder.self_attn.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.keys_values.weight]))
        encoder.self_attn.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.keys_values.bias]))
    pairs = [
        (encoder.self_attn.out_proj, layer.mix),
        (encoder.linear1, layer.up),
        (encoder.linear2, layer.down),
        (encoder.norm1, layer.first),
        (encoder.norm2, layer.second),
    ]
    for own, given in pairs:
        own.load_state_dict(given.state_dict())
    return encoder


def test_a_single_layer_vit_is_one_encoder_layer_over_patches():
    torch.manual_seed(0)
    layer, values = SingleLayerViT(IMAGES, 8, 4, 2), torch.randn(3, *IMAGES)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
    patches = torch.stack([values[:, :, r : r + 4, c : c + 4].flatten(1) for r, c in corners], 1)
    tokens = torch.cat([layer.token.expand(3, -1, -1), layer.embed(patches)], 1) + layer.positions
    expected = layer.last(as_encoder_layer(layer, 8)(tokens)[:, 0])
    torch.testing.assert_close(layer(values), expected, rtol=1e-4, atol=1e-5)


def test_sides_that_no_patch_divides_are_padded():
    torch.manual_seed(0)
    layer, values = SingleLayerViT((2, 5, 6), 4, 4, 1), torch.randn(3, 2, 5, 6)
    padded = torch.zeros(3, 2, 8, 8)
    padded[:, :, :5, :6] = values
    torch.testing.assert_close(layer(values), layer(padded))


def test_multiply_adds_are_those_of_the_layers():
    assert head_macs(LinearExit(), [IMAGES], (3,)) == 6 * 3
    assert head_macs(MLPExit(7, 3), [IMAGES], (3,)) == 6 * 9 * 7 + 7 * 3
    assert head_macs(ConvExit(9), [IMAGES], (3,)) == 9 * 6 * 9 * (4 * 4) + 9 * 3
    tokens, w = 17, 8
    embed, attention = 16 * (6 * 2 * 2) * w, w * w + tokens * w * 2 * w + 2 * tokens * w + w * w
    assert head_macs(SLViTExit(8, heads=2), [IMAGES], (3,)) == embed + attention + 4 * w * w + w * 3


def test_attention_counts_although_cpus_have_a_fused_kernel():
    queries = torch.randn(3, 2, 5, 4)
    attend = nn.functional.scaled_dot_product_attention
    assert macs_of(lambda: attend(queries, queries, queries), 3) == 2 * (5 * 5 * 4 * 2)


@pytest.mark.parametrize(("kind", "step"), [("mlp", 1), ("conv", 1), ("sl_vit", 4)])
def test_the_width_for_a_budget_is_the_largest_that_fits(kind, step):
    width = width_for_macs(kind, IMAGES, 3, 20_000)
    make = {"mlp": MLPExit, "conv": ConvExit, "sl_vit": SLViTExit}[kind]
    assert head_macs(make(width), [IMAGES], (3,)) <= 20_000 < head_macs(make(width + step), [IMAGES], (3,))


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: width_for_macs("linear", IMAGES, 3, 1e5), "exit head 'linear' has no width"),
        (lambda: width_for_macs("conv", IMAGES, 3, 10), r"macs=10: the narrowest exit head 'conv' takes 867 there"),
        (lambda: width_for_macs("conv", IMAGES, 3, float("inf")), "macs=inf: a finite number of multiply-adds"),
        (lambda: width_for_macs("conv", IMAGES, 0, 1e5), "outputs=0: sizes of at least 1"),
        (lambda: width_for_macs("conv", (), 3, 1e5), r"shape=\(\), outputs=3: sizes of at least 1"),
        (lambda: SLViTExit(10), "width=10: 4 heads must divide it; give a multiple of 4"),
        (lambda: ConvExit(0), "width=0: 1 or more"),
        (lambda: LinearExit().build([(1, 2, 3, 4)], (3,)), r"values of shape \(B, 1, 2, 3, 4\) pass there"),
    ],
)
def test_wrong_sizes_are_told_in_a_line(call, line):
    with pytest.raises(ConfigError, match=line):
        call()
