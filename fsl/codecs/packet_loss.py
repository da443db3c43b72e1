"""Loses values as a link without retransmission does, so that a model learns to do without them (COMtune)."""

from typing import ClassVar

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.through import Codes, Through
from fsl.errors import WireError
from fsl.packets import LossyLink, PacketChannel, Packing, Reception
from fsl.packets.packing import Order
from fsl.packets.reception import Rescale


class PacketLoss(Through):
    """Sends all values of a row in packets, of which the receiver misses some: their values are 0 for it.

    `loss`, `burst`: see `fsl.packets.PacketChannel`. `values`, `order`: see `fsl.packets.Packing`; packets of one value
    are dropout at the cut, by which the paper emulates the link. `rescale`: see `fsl.packets.Reception`; with "known"
    the values that came are divided by 1 - loss, as dropout does. Gradients go to the values that came. `evaluations`:
    whether packets get lost in evaluations, too. Nothing gets lost on the wire: every byte is sent and counted, and
    the receiver leaves out what it draws. Draws differ by a row's place in its batch, so it is not row-wise.

    Itahara et al. 2021, "Packet-Loss-Tolerant Split Inference for Delay-Sensitive Deep Learning in Lossy Wireless
    Networks" (COMtune, arXiv 2112.09407).
    """

    name: ClassVar[str] = "packet_loss"

    @checks_types("packet_loss.")
    def __init__(
        self,
        loss: float = 0.5,
        burst: float | None = None,
        values: int = 1,
        order: Order = "interleaved",
        rescale: Rescale = "known",
        evaluations: bool = True,
    ) -> None:
        self.link = LossyLink(PacketChannel(loss, burst), Packing(values, order), Reception(rescale=rescale))
        self.evaluations = evaluations

    def project(self, values: Tensor) -> Codes:
        """Returns (B, D) codes: all values of each row."""
        return Codes(values.flatten(1))

    def restore(self, codes: Codes, shape: torch.Size) -> Tensor:
        """Returns values of this shape (B, ...), with zeros where packets got lost."""
        given = codes.values
        if given.dim() != 2 or given.shape != (shape[0], shape[1:].numel()) or codes.beside:
            raise WireError(
                f"codec 'packet_loss' got codes of shape {tuple(given.shape)} for values of shape {tuple(shape)}"
            )
        self.check_size(shape, given.dtype)
        if not given.numel() or not (self._call.training or self.evaluations):
            return given.reshape(shape)
        return self.link.losses(given, self.generator()).reshape(shape)
