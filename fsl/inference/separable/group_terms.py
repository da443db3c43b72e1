"""What devices of a separable network say to each other first, and what they ask of whoever says it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fsl.argument_types import checks_types
from fsl.errors import TrustError, WireError
from fsl.inference.serving.serving_tokens import ServingGrant, sign_grant, signed_grant
from fsl.installed import __version__
from fsl.messages import separable_pb2 as pb
from fsl.messages.inference_records import record
from fsl.messages.versions import PROTOCOL, check_versions

_PURPOSE = b"fsl separable token 1\0"  # a token of this kind lets nobody ask an edge for inference, nor one of those in


@checks_types()
def sign_part(key: Ed25519PrivateKey, *, device: int, digest: str, expires: float) -> bytes:
    """Returns an operator's token: this device may take part in the network of this digest.

    It counts until `expires`, in seconds since 1970.
    """
    return sign_grant(key, ServingGrant(_name(device, digest), expires), _PURPOSE)


def _name(device: int, digest: str) -> str:
    return f"separable device {device} of {digest[:32]}"


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
        if self.keys is None:
            return
        grant = signed_grant(said.token, self.keys, _PURPOSE)
        if grant is None:
            raise TrustError(f"the token of {there} was not signed for a separable network by this device's operator")
        if grant.name != _name(said.device, self.digest):
            raise TrustError(f"the token of {there} is for {grant.name!a}, which is not this part of this network")
        if (late := time.time() - grant.expires) >= 0:
            raise TrustError(f"the token of {there} has expired {late:.0f} s ago; ask for another")
