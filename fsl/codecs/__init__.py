"""Encodes smashed data and cut gradients for the wire, one file a codec."""

from fsl.codecs.adaptive import Adaptive
from fsl.codecs.bfloat16 import BFloat16
from fsl.codecs.binary import Binary
from fsl.codecs.bottleneck import Bottleneck
from fsl.codecs.c3 import C3
from fsl.codecs.chain import Chain
from fsl.codecs.codec import Codec, Payload, pack
from fsl.codecs.entropic import Entropic
from fsl.codecs.error_bounded import ErrorBounded
from fsl.codecs.fedlite import FedLite
from fsl.codecs.float16 import Float16
from fsl.codecs.huffman import Huffman, fit_frequencies
from fsl.codecs.identity import Identity
from fsl.codecs.int2 import Int2
from fsl.codecs.int4 import Int4
from fsl.codecs.int8 import Int8
from fsl.codecs.learned import Learned
from fsl.codecs.lossless import Lossless
from fsl.codecs.packet_loss import PacketLoss
from fsl.codecs.randtopk import RandTopK
from fsl.codecs.rans import Rans
from fsl.codecs.through import Codes, Through
from fsl.codecs.topk import TopK
from fsl.codecs.units import Units, only_units, switch
from fsl.codecs.vq import VQ
from fsl.codecs.zstd import Zstd

__all__ = [
    "C3",
    "VQ",
    "Adaptive",
    "BFloat16",
    "Binary",
    "Bottleneck",
    "Chain",
    "Codec",
    "Codes",
    "Entropic",
    "ErrorBounded",
    "FedLite",
    "Float16",
    "Huffman",
    "Identity",
    "Int2",
    "Int4",
    "Int8",
    "Learned",
    "Lossless",
    "PacketLoss",
    "Payload",
    "RandTopK",
    "Rans",
    "Through",
    "TopK",
    "Units",
    "Zstd",
    "fit_frequencies",
    "only_units",
    "pack",
    "switch",
]
