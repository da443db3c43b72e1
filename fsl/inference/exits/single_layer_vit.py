"""An exit branch of one transformer layer over patches of a feature map."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad


class SingleLayerViT(nn.Module):
    """Patches, linear, class token and positions, one encoder layer; returns the class token's values (B, width).

    It takes a feature map (B, C, H, W), in patches of `patch` x `patch`, or tokens (B, T, D), `patch` in a row; sides
    that no patch divides are padded by zeros. The encoder normalises first, has `heads` heads, and a perceptron twice
    as wide as its tokens. Nobody reads what the one layer makes of other tokens than the class token, so that it is not
    computed.

    Bakhtiarnia et al. 2021, "Single-Layer Vision Transformers for More Accurate Early Exits with Less Overhead" (arXiv
    2105.09121). Its sizes could not be read, and are fsl's.
    """

    def __init__(self, shape: tuple[int, ...], width: int, patch: int, heads: int) -> None:
        super().__init__()
        self.patch, self.heads = patch, heads
        channels, sides = (shape[0], shape[1:]) if len(shape) == 3 else (shape[1], shape[:1])
        count, area = 1, 1
        for side in sides:
            count, area = count * -(-side // patch), area * patch
        self.embed = nn.Linear(channels * area, width)
        self.token = nn.Parameter(torch.randn(1, 1, width) * _SPREAD)
        self.positions = nn.Parameter(torch.randn(1, count + 1, width) * _SPREAD)
        self.first, self.second, self.last = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Returns (B, width)."""
        tokens = self.embed(self._patches(features))
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1) + self.positions
        token = tokens[:, 0] + self.mix(self._attention(self.first(tokens)))
        return self.last(token + self.down(gelu(self.up(self.second(token)))))

    def _patches(self, features: Tensor) -> Tensor:
        """Returns (B, patches, values of a patch)."""
        p = self.patch
        if features.dim() == 3:
            tokens = pad(features, (0, 0, 0, -features.shape[1] % p))
            return tokens.reshape(len(tokens), tokens.shape[1] // p, -1)
        maps = pad(features, (0, -features.shape[3] % p, 0, -features.shape[2] % p))
        rows, columns = maps.shape[2] // p, maps.shape[3] // p
        maps = maps.reshape(len(maps), maps.shape[1], rows, p, columns, p)
        return maps.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _attention(self, tokens: Tensor) -> Tensor:
        """Returns what the class token finds among all tokens (B, width)."""
        rows, count, width = tokens.shape
        query = self.query(tokens[:, :1]).reshape(rows, 1, self.heads, -1).transpose(1, 2)
        pairs = self.keys_values(tokens).reshape(rows, count, 2, self.heads, -1)
        keys, values = pairs.permute(2, 0, 3, 1, 4)
        scores = query @ keys.transpose(2, 3) * (width // self.heads) ** -0.5
        return (scores.softmax(-1) @ values).transpose(1, 2).reshape(rows, width)


_SPREAD = 0.02  # of first values, as transformers have it
