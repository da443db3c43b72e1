"""Why an edge ends a stream."""

import grpc

from fsl.errors import TrustError, WireError
from fsl.wire.frame_stream import TooLarge

Code = grpc.StatusCode


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """Ends a stream with a gRPC status code and a reason, which the other end receives."""

    def __init__(self, code: grpc.StatusCode, reason: str):
        super().__init__(reason)
        self.code = code
        self.reason = reason


def refusal_of(error: Exception) -> Refusal | None:
    """Returns the refusal for what somebody sent; None for an error of another kind."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TooLarge):
        return Refusal(Code.RESOURCE_EXHAUSTED, str(error))
    if isinstance(error, TrustError):
        return Refusal(Code.PERMISSION_DENIED, str(error))
    if isinstance(error, WireError):
        return Refusal(Code.INVALID_ARGUMENT, str(error))
    return None
