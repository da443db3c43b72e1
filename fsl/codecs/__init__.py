"""Encodes smashed data and cut gradients for the wire, one file a codec."""

from fsl.codecs.bfloat16 import BFloat16
from fsl.codecs.codec import Codec, Payload, pack
from fsl.codecs.float16 import Float16
from fsl.codecs.identity import Identity
from fsl.codecs.int8 import Int8

__all__ = ["BFloat16", "Codec", "Float16", "Identity", "Int8", "Payload", "pack"]
