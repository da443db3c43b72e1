"""Packs bytes by Zstandard, without loss."""

from types import ModuleType
from typing import ClassVar

import numpy as np

from fsl.argument_types import checks_types
from fsl.codecs.lossless import Bytes, Lossless
from fsl.errors import ConfigError

_HIGHEST = 22


class Zstd(Lossless):
    """Zstandard (RFC 8878) of an array's bytes. Error: none, of any dtype, NaN and infinities included.

    `level`: 1 (fast) to 22 (small). How many bytes it makes depends on the library's version; what they decode to does
    not. Needs `pip install 'fsl-flower[codecs]'`.
    """

    name: ClassVar[str] = "zstd"

    @checks_types("zstd.")
    def __init__(self, level: int = 3) -> None:
        if not 1 <= level <= _HIGHEST:
            raise ConfigError(f"level={level!r}: from 1, the fastest, to {_HIGHEST}, which packs closest")
        self.level = level
        _library()

    def compress(self, planes: Bytes) -> bytes:
        """Returns one frame, which tells how many bytes it stands for."""
        return bytes(_library().ZstdCompressor(level=self.level).compress(np.ascontiguousarray(planes).data))

    def expand(self, packed: Bytes, planes: Bytes) -> None:
        """Fill planes from one frame; ValueError for one that stands for more or fewer bytes, or is damaged."""
        library = _library()
        frame = packed.tobytes()
        try:
            size = library.frame_content_size(frame)  # the library makes room for so many
            if size != planes.size:
                raise ValueError(f"a frame of {size} bytes, where {planes.size} are told")
            whole = library.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        except library.ZstdError as error:
            raise ValueError(str(error)) from None
        planes[...] = np.frombuffer(whole, np.uint8).reshape(planes.shape)


def _library() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise ConfigError("codec 'zstd': zstandard is not installed; pip install 'fsl-flower[codecs]'") from None
    return zstandard
