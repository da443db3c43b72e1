"""Compares ways of dividing a trained model at work: answers, bytes, latency, energy and size."""

from fsl.inference.comparison.common_of_policy import common_of_policy
from fsl.inference.comparison.cut_way import CutWay, tensor_bytes
from fsl.inference.comparison.exit_requests import ExitRequests, exit_stage_seconds, simulate_exits
from fsl.inference.comparison.measured_answers import MeasuredAnswer, measure_answers
from fsl.inference.comparison.policy_figures import PolicyFigures, device_weights, policy_figures

__all__ = [
    "CutWay",
    "ExitRequests",
    "MeasuredAnswer",
    "PolicyFigures",
    "common_of_policy",
    "device_weights",
    "exit_stage_seconds",
    "measure_answers",
    "policy_figures",
    "simulate_exits",
    "tensor_bytes",
]
