"""Networks whose channels lie on several devices: which maps they exchange is searched, and then served."""

from fsl.inference.separable.device_folders import SeparablePart, load_device, save_devices, separable_part
from fsl.inference.separable.gate_search import GateSearch, search_gates
from fsl.inference.separable.gates import Gates
from fsl.inference.separable.group_terms import sign_part
from fsl.inference.separable.local_group import LocalGroup
from fsl.inference.separable.separable_device import SeparableDevice
from fsl.inference.separable.separable_latency import SeparableLatency, StageSeconds, separable_latency
from fsl.inference.separable.separable_model import SeparableBytes, SeparableModel, separable
from fsl.inference.separable.separable_training import separable_accuracy, train_separable

__all__ = [
    "GateSearch",
    "Gates",
    "LocalGroup",
    "SeparableBytes",
    "SeparableDevice",
    "SeparableLatency",
    "SeparableModel",
    "SeparablePart",
    "StageSeconds",
    "load_device",
    "save_devices",
    "search_gates",
    "separable",
    "separable_accuracy",
    "separable_latency",
    "separable_part",
    "sign_part",
    "train_separable",
]
