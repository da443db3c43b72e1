"""Codecs that are made of others: each of these sees the calls of the whole, with draws of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, CodecCall
from fsl.codecs.through import Codes, Through
from fsl.seeds import Stream


class Composite(Through):
    """A codec whose payloads others make, and tell how to read them."""

    _parts: Sequence[Codec]
    _streams: tuple[Stream | None, list[Stream]] = (None, [])

    def at(self, call: CodecCall) -> Self:
        """Set what the next call belongs to, for all parts."""
        if self._streams[0] is not call.stream:
            self._streams = call.stream, [Stream(call.stream.base, f"part-{k}") for k in range(len(self._parts))]
        for number, (part, own) in enumerate(zip(self._parts, self._streams[1])):
            part.at(replace(call, stream=own, limit=call.limit + self._room_of(number)))
        return super().at(call)

    def _room_of(self, part: int) -> int:
        """Returns how many bytes more than the whole's values what a part decodes may have."""
        return 0

    def project(self, values: Tensor) -> Codes:
        """Returns the codes that the parts make."""
        return Codes(self.send(values)[0])

    def restore(self, codes: Codes, shape: torch.Size) -> Tensor:
        """RuntimeError: how values are restored comes with the payload; see `receive`."""
        raise RuntimeError(f"the payload of {self.name} tells how values are restored; use receive")
