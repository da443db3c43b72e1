"""Encodes smashed data and cut gradients for the wire, one file a codec."""

from fsl.codecs.bfloat16 import BFloat16
from fsl.codecs.c3 import C3
from fsl.codecs.chain import Chain
from fsl.codecs.codec import Codec, Payload, pack
from fsl.codecs.error_bounded import ErrorBounded
from fsl.codecs.float16 import Float16
from fsl.codecs.identity import Identity
from fsl.codecs.int8 import Int8
from fsl.codecs.learned import Learned
from fsl.codecs.through import Codes, Through

__all__ = [
    "C3",
    "BFloat16",
    "Chain",
    "Codec",
    "Codes",
    "ErrorBounded",
    "Float16",
    "Identity",
    "Int8",
    "Learned",
    "Payload",
    "Through",
    "pack",
]
