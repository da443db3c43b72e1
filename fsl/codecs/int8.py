"""Quantizes to 8 bits by an affine map."""

from typing import ClassVar

from fsl.argument_types import checks_types
from fsl.codecs.affine import Affine, Per


class Int8(Affine):
    """Quarters float32: values become q with value = middle + (q - 127.5) * step, q in 0..255.

    `per`: what has a middle and a step of its own, which travel beside q: the tensor, each channel (dim 1), or each
    sample. `stochastic`: unbiased rounding, drawn anew in each step, instead of that to the nearest.

    Error: at most half a step, (max - min) / 510, a step if stochastic, and the dtype's own rounding. Decodes to the
    dtype that was encoded. RunError for values that are not finite, which have no place on the scale; per sample a row
    with such values is restored as NaN.
    """

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8

    @checks_types("int8.")
    def __init__(self, per: Per = "tensor", stochastic: bool = False) -> None:
        super().__init__(per, stochastic)
