"""Quantizes to 2 bits by an affine map, four values in a byte."""

from typing import ClassVar

from fsl.argument_types import checks_types
from fsl.codecs.affine import Affine, Per


class Int2(Affine):
    """A sixteenth of float32: values become q with value = middle + (q - 1.5) * step, q in 0..3.

    `per`: what has a middle and a step of its own, which travel beside q: the tensor, each channel (dim 1), or each
    sample; per sample each row has bytes of its own. `stochastic`: unbiased rounding, drawn anew in each step, instead
    of that to the nearest; of four levels none is zero where a range is symmetric, so cut gradients want it.

    Error: at most half a step, (max - min) / 6, a step if stochastic, and the dtype's own rounding. Decodes to the
    dtype that was encoded. RunError for values that are not finite, which have no place on the scale; per sample a row
    with such values is restored as NaN.
    """

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2

    @checks_types("int2.")
    def __init__(self, per: Per = "tensor", stochastic: bool = False) -> None:
        super().__init__(per, stochastic)
