"""What int8 needs of a machine: kernels of oneDNN in torch, and sums that do not saturate."""

import platform
from functools import cache

import torch

from fsl.argument_types import checks_types
from fsl.errors import ConfigError

_ENGINE = "onednn"


def check_int8() -> None:
    """Raise ConfigError on a machine whose torch has no int8 kernels of oneDNN."""
    engines = _engines()
    if _ENGINE not in engines or not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        listed = ", ".join(engines) or "none"
        raise ConfigError(
            f"int8: torch {torch.__version__} on this machine ({platform.machine()}) has the quantized engines {listed}"
            f", and int8 here runs by {_ENGINE}; use the model that fsl.models.lean.quantized gives, which simulates it"
        )


def _engines() -> list[str]:
    return [str(one) for one in torch.backends.quantized.supported_engines]


@cache
def has_vnni() -> bool:
    """Returns whether int8 sums come out right with activations of 8 bits, as on processors with VNNI.

    Others add two products in 16 bits, which saturate at 32,767 where 2 * 255 * 127 is 64,770; with 7 bits they fit. It
    is tried out, once: what oneDNN uses may be less than what the processor has. ConfigError as `check_int8`.
    """
    check_int8()
    channels = 64
    weight = torch.full((channels, channels, 3, 3), 127, dtype=torch.int8)
    ones, zeros = torch.ones(channels), torch.zeros(channels, dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    inputs = torch.full((1, channels, 8, 8), 255, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    found = torch.ops.onednn.qconv2d_pointwise(
        inputs, 1.0, 0, packed, ones, zeros, None, [1, 1], [0, 0], [1, 1], 1, 1.0, 0, torch.float32, "none", [], ""
    )
    return bool((found == channels * 9 * 255 * 127).all())


@checks_types()
def activation_bits(wanted: int | None = None) -> int:
    """Returns the bits of activations: those wanted, or as many as this machine takes, 8 or 7.

    ConfigError for others, and for 8 on a machine without VNNI.
    """
    check_int8()
    if wanted not in (None, 7, 8):
        raise ConfigError(f"activation_bits={wanted}: int8 runs with 8, or with 7 on processors without VNNI")
    if wanted == 8 and not has_vnni():
        raise ConfigError(
            "activation_bits=8: this machine has no VNNI, and sums of 8-bit activations would saturate; give 7, or "
            "leave it out"
        )
    return wanted or (8 if has_vnni() else 7)
