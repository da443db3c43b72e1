"""Packets that get lost: how values are divided into them, which arrive, and what a receiver makes of those."""

from fsl.packets.lossy_link import LossyLink, Passage
from fsl.packets.packet_channel import PacketChannel
from fsl.packets.packing import Packing
from fsl.packets.reception import Reception
from fsl.packets.retransmission import Retransmitted, retransmitted

__all__ = ["LossyLink", "PacketChannel", "Packing", "Passage", "Reception", "Retransmitted", "retransmitted"]
