"""Makes this machine as slow as a small device: each layer takes as long as its multiply-adds say."""

import math
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_WEIGHTED = (_ConvNd, nn.Linear)


def slow_down(model: nn.Module, macs_per_second: float, sleep: Callable[[float], object] = time.sleep) -> None:
    """Have each convolution and linear layer of a model take the seconds of its multiply-adds, at least.

    What the layer took by itself counts. Other layers take what they take. For good: give it a copy of the model.
    """
    for module in model.modules():
        if isinstance(module, _WEIGHTED):
            layer = _SlowLayer(module.weight, macs_per_second, sleep)
            module.register_forward_pre_hook(layer.begin)
            module.register_forward_hook(layer.end)


class _SlowLayer:
    """One layer's hooks; it is computed by one thread at a time, as `InferenceDevice` does."""

    def __init__(self, weight: Tensor, macs_per_second: float, sleep: Callable[[float], object]) -> None:
        self._seconds = math.prod(weight.shape[1:]) / macs_per_second  # of an element of its output
        self._sleep = sleep
        self._began = 0.0

    def begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def end(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        left = output.numel() * self._seconds - (time.perf_counter() - self._began)
        if left > 0:
            self._sleep(left)
