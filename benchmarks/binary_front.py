"""Measures packed binary convolutions beside those of floats: time and memory, one thread, in the same run.

    python -m benchmarks.binary_front

For each layer the best of so many turns; both sides in turn. Time includes packing the inputs and writing floats. The
front is VGG5's up to pool2 for 32x32 images, with batch normalisation, whose first layer multiplies floats in both.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fsl.models import VGG5, BinaryConv2d, binarized, pack_binary
from fsl.models.binarized import signs
from fsl.split.cutting import split

LAYERS = (  # batch, inputs, outputs, side
    (32, 32, 64, 16),
    (32, 64, 64, 8),
    (32, 64, 128, 16),
    (16, 128, 256, 16),
    (8, 256, 256, 16),
    (1, 64, 64, 32),
)


def best(turns: int, *ways: Callable[[], Tensor]) -> list[float]:
    """Returns the shortest time of each, in seconds."""
    found = [float("inf")] * len(ways)
    for _ in range(turns):
        for place, way in enumerate(ways):
            started = time.perf_counter()
            way()
            found[place] = min(found[place], time.perf_counter() - started)
    return found


def size(module: nn.Module) -> int:
    """Returns the bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def compare(name: str, floats: nn.Module, binary: nn.Module, inputs: Tensor, turns: int) -> None:
    compiled, by_numpy = pack_binary(binary), pack_binary(binary, compiled=False)
    assert torch.equal(compiled(inputs), binary(inputs))
    assert torch.equal(by_numpy(inputs), binary(inputs))
    plain, one, other = best(turns, *(partial(m, inputs) for m in (floats, compiled, by_numpy)))
    print(
        f"{name}: float {1e3 * plain:.2f} ms; compiled {plain / one:.1f} times as fast, NumPy {plain / other:.2f} "
        f"times; memory {size(floats) / size(compiled):.1f} times less"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for batch, inputs, outputs, side in LAYERS:
            floats: nn.Module = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False).eval()
            binary: nn.Module = BinaryConv2d(inputs, outputs, 3, padding=1, bias=False).eval()
            name = f"conv 3x3 {inputs}-{outputs}, {batch} images of {side}x{side}"
            compare(name, floats, binary, signs(torch.randn(batch, inputs, side, side)), turns)
        model = VGG5((3, 32, 32), 10, norm="batch")
        floats, binary = (split(each, "pool2")["front"].eval() for each in (model, binarized(model, "pool2")))
        compare("VGG5 up to pool2, 32 images of 32x32", floats, binary, torch.randn(32, 3, 32, 32), turns)


if __name__ == "__main__":
    main()
