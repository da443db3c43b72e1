"""Who takes part in a round: rules that choose among the devices that are available."""

from fsl.selection.drawn import BySamples as BySamples
from fsl.selection.drawn import RoundRobin as RoundRobin
from fsl.selection.drawn import Uniform as Uniform
from fsl.selection.fedcs import FedCS as FedCS
from fsl.selection.power_of_choice import PowerOfChoice as PowerOfChoice
from fsl.selection.selection import Candidates as Candidates
from fsl.selection.selection import Selection as Selection

__all__ = ["BySamples", "Candidates", "FedCS", "PowerOfChoice", "RoundRobin", "Selection", "Uniform"]
