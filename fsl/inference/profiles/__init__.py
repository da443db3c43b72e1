"""Measures what a split model costs at each point on a machine, and predicts it for other layers."""

from fsl.inference.profiles.bottlenecks import natural_bottlenecks
from fsl.inference.profiles.encodings import PLAIN, Encoding, image_encoding, raw_image_encoding
from fsl.inference.profiles.latency_predictor import LatencyPredictor, PredictionError, held_out_errors
from fsl.inference.profiles.layer_timing import Layer, TimedModel, time_layers
from fsl.inference.profiles.measuring import measure
from fsl.inference.profiles.model_profile import (
    ModelProfile,
    PointProfile,
    SecondsSpread,
    SideProfile,
    SplitCheck,
    read_profile,
)
from fsl.inference.profiles.this_machine import machine_in_words

__all__ = [
    "PLAIN",
    "Encoding",
    "LatencyPredictor",
    "Layer",
    "ModelProfile",
    "PointProfile",
    "PredictionError",
    "SecondsSpread",
    "SideProfile",
    "SplitCheck",
    "TimedModel",
    "held_out_errors",
    "image_encoding",
    "machine_in_words",
    "measure",
    "natural_bottlenecks",
    "raw_image_encoding",
    "read_profile",
    "time_layers",
]
