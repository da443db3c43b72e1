"""Answers requests for a split model: an edge and its devices, over the wire."""

from fsl.inference.serving.answer import Answer, AnswerSeconds, UnansweredError
from fsl.inference.serving.batching import Batching
from fsl.inference.serving.device_counts import DeviceFigures
from fsl.inference.serving.device_exits import DeviceExits
from fsl.inference.serving.edge_counts import EdgeFigures
from fsl.inference.serving.inference_device import EdgeStatus, InferenceDevice
from fsl.inference.serving.inference_edge import InferenceEdge
from fsl.inference.serving.profile_asking import ask_profile
from fsl.inference.serving.profile_service import ProfileService
from fsl.inference.serving.serving_tokens import ServingGrant, check_grant, sign_grant

__all__ = [
    "Answer",
    "AnswerSeconds",
    "Batching",
    "DeviceExits",
    "DeviceFigures",
    "EdgeFigures",
    "EdgeStatus",
    "InferenceDevice",
    "InferenceEdge",
    "ProfileService",
    "ServingGrant",
    "UnansweredError",
    "ask_profile",
    "check_grant",
    "sign_grant",
]
