"""Chooses where to divide a model, from profiles, rates and loads."""

from fsl.inference.planning.clairvoyant import ClairvoyantPlan, clairvoyant_plan, static_result
from fsl.inference.planning.deadline_policy import BestInTime
from fsl.inference.planning.dynamic_split import DynamicSplit
from fsl.inference.planning.profiled_exits import profiled_exit_seconds
from fsl.inference.planning.rate_estimator import RateEstimator
from fsl.inference.planning.rate_trace import RateTrace
from fsl.inference.planning.request_prediction import Prediction, best_of, best_point, predicted
from fsl.inference.planning.request_spending import RequestSpending
from fsl.inference.planning.request_stream import RequestStream, ServedRequest, StreamResult, poisson_arrivals
from fsl.inference.planning.scouting import Scouting
from fsl.inference.planning.split_costs import LOCAL, REMOTE, DevicePower, LinkState, SplitChoice, SplitCosts
from fsl.inference.planning.split_policy import CompressedInput, Local, Remote, SplitPolicy, StaticSplit
from fsl.inference.planning.stream_simulation import LinkProbes, simulate_requests
from fsl.inference.planning.synthetic_rates import RateModel

__all__ = [
    "LOCAL",
    "REMOTE",
    "BestInTime",
    "ClairvoyantPlan",
    "CompressedInput",
    "DevicePower",
    "DynamicSplit",
    "LinkProbes",
    "LinkState",
    "Local",
    "Prediction",
    "RateEstimator",
    "RateModel",
    "RateTrace",
    "Remote",
    "RequestSpending",
    "RequestStream",
    "Scouting",
    "ServedRequest",
    "SplitChoice",
    "SplitCosts",
    "SplitPolicy",
    "StaticSplit",
    "StreamResult",
    "best_of",
    "best_point",
    "clairvoyant_plan",
    "poisson_arrivals",
    "predicted",
    "profiled_exit_seconds",
    "simulate_requests",
    "static_result",
]
