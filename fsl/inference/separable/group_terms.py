"""What devices of a separable network say to each other first, and what they ask of whoever says it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fsl.argument_types import checks_types
from fsl.errors import TrustError, WireError
from fsl.inference.serving.serving_tokens import check_grant
from fsl.installed import __version__
from fsl.messages import separable_pb2 as pb
from fsl.messages.inference_records import record
from fsl.messages.versions import PROTOCOL, check_versions


@checks_types()
def group_grant_name(device: int, digest: str) -> str:
    """Returns the name for which an operator signs a device's token: the device, and the network that it is part of."""
    return f"separable device {device} of {digest[:16]}"


@dataclass(frozen=True, kw_only=True)
class GroupTerms:
    """What a device says to others, and asks of them: the network's digest, its number, its token, whose tokens count.

    `keys`: None where any device with this network may take part.
    """

    digest: str
    device: int
    devices: int
    token: bytes
    keys: Sequence[Ed25519PublicKey] | None

    def greeting(self) -> bytes:
        """Returns what the device says first."""
        said = pb.GroupGreeting(
            protocol=PROTOCOL,
            version=__version__,
            model=self.digest,
            device=self.device,
            devices=self.devices,
            token=self.token,
        )
        return record(pb.ToGroup(greeting=said))

    def check(self, said: pb.GroupGreeting, there: str) -> None:
        """Raise WireError or TrustError for a device that may not take part."""
        check_versions(said.protocol, said.version, there, f"device {self.device}")
        if said.model != self.digest or said.devices != self.devices or said.device >= self.devices:
            raise WireError(
                f"{there} has network {said.model[:12]!a} of {said.devices} devices, and device {self.device} has "
                f"{self.digest[:12]!r} of {self.devices}: weights or gates differ; give both folders of one save"
            )
        if self.keys is not None:
            grant = check_grant(said.token, self.keys, time.time())
            if grant.name != group_grant_name(said.device, self.digest):
                raise TrustError(f"the token of {there} is for {grant.name!a}, which is not this part of this network")
