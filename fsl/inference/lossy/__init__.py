"""Links that lose packets: samples in datagrams over UDP, and the edge that computes from what has come."""

from fsl.inference.lossy.lossy_proxy import LossyProxy
from fsl.inference.lossy.simulated import LossyOutputs, outputs_over
from fsl.inference.lossy.udp_device import UdpAnswers, UdpDevice
from fsl.inference.lossy.udp_edge import UdpCounts, UdpEdge

__all__ = ["LossyOutputs", "LossyProxy", "UdpAnswers", "UdpCounts", "UdpDevice", "UdpEdge", "outputs_over"]
