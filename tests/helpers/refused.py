"""Frames of uploads for an edge that may refuse them, and what a refusal has to be."""

import grpc
import torch

from fsl.codecs import Payload
from fsl.messages.frames import upload_frame

Code = grpc.StatusCode
REFUSED = {
    Code.INVALID_ARGUMENT,
    Code.UNAUTHENTICATED,
    Code.PERMISSION_DENIED,
    Code.FAILED_PRECONDITION,
    Code.ALREADY_EXISTS,
    Code.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED,
    Code.ABORTED,
}
SHAPE = (4, 4, 4)  # of one row of smashed data


def smashed(rows=4, shape=SHAPE, dtype=torch.float32):
    return torch.ones(rows, *shape).to(dtype)


def labels(rows=4):
    return torch.zeros(rows, dtype=torch.int64)


def upload(device, step=0, values=None, targets=None, round=1, codec="identity"):
    values = smashed() if values is None else values
    payload = Payload(codec, (("values", values),))
    return upload_frame(device, round, step, payload, labels() if targets is None else targets)


def assert_refused(refusal, *allowed):
    code, reason = refusal
    assert code in (allowed or REFUSED), refusal
    assert reason
    assert "\n" not in reason
    assert len(reason) < 600
