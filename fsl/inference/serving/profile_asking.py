"""Asks another machine, over the network, what a model costs there."""

from collections.abc import Sequence

import grpc
from google.protobuf.message import DecodeError

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, RunError, WireError
from fsl.inference.profiles import ModelProfile
from fsl.inference.serving.edge_greeting import REFUSALS
from fsl.inference.serving.loopback import refuse_unencrypted
from fsl.inference.serving.profile_service import LARGEST_PROFILE, refuse_sizes
from fsl.inference.split_points import SplitPoints
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.strict_json import from_json
from fsl.messages.versions import PROTOCOL, check_versions
from fsl.quoting import one_line
from fsl.wire.options import PROFILE_METHOD, Certificates, channel_credentials, channel_options


@checks_types(leave=("points",))
def ask_profile(
    address: str,
    points: SplitPoints,
    *,
    token: bytes = b"",
    certificates: Certificates | None = None,
    names: Sequence[str] | None = None,
    batch: int = 1,
    repetitions: int = 50,
    warm_up: int = 5,
    checks: int = 3,
    wait: float = 600.0,
) -> ModelProfile:
    """Returns what a model costs on the machine at `address`, where a `ProfileService` has the same model.

    `points`: of the model here, whose digest both compare. `names`: of the points that are wanted; None: all there. It
    waits so many seconds at most. ConfigError for what that machine refuses, and without TLS for any but this one;
    RunError where it cannot be reached or does not answer in time, WireError for what is no profile of that model.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{address}: give host:port, where fsl-serve profile listens")
    refuse_sizes(batch=batch, repetitions=repetitions, warm_up=warm_up, checks=checks)
    if certificates is None:
        refuse_unencrypted(address)
    asked = pb.AskedProfile(
        token=token,
        protocol=PROTOCOL,
        version=__version__,
        model=points.digest(),
        points=list(names or ()),
        batch=batch,
        repetitions=repetitions,
        warm_up=warm_up,
        checks=checks,
    )
    options = channel_options(LARGEST_PROFILE)
    if certificates is None:
        channel = grpc.insecure_channel(address, options)
    else:
        channel = grpc.secure_channel(address, channel_credentials(certificates.device_files()), options)
    with channel:
        try:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PROFILE_METHOD)
            data = call(asked.SerializeToString(), timeout=wait)
        except grpc.RpcError as error:
            why = one_line(error.details() or error.code().name, 300)
            kind = ConfigError if error.code() in REFUSALS else RunError
            raise kind(f"{address} gives no profile: {why}") from None
    return _read(data, points, batch, address)


def _read(data: bytes, points: SplitPoints, batch: int, address: str) -> ModelProfile:
    try:
        told = pb.ToldProfile.FromString(data)
        check_versions(told.protocol, told.version, "that machine", "this one")
        found = from_json(told.profile, ModelProfile)
    except (DecodeError, ValueError, ConfigError) as error:
        raise WireError(f"{address} gave what is no profile: {one_line(str(error), 200)}") from None
    if found.digest != points.digest() or found.batch != batch:
        raise WireError(f"{address} gave the profile of another model, or of another batch, than was asked for")
    return found
