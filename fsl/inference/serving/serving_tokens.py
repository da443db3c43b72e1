"""Signs and checks tokens by which an operator of edges says who may ask them for inference, and until when.

What the operator's key signs begins with its purpose: a token of a training run, or of a device of a separable network,
opens no stream here, and one of these none there. A token is shown over TLS alone: who has it may ask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from google.protobuf.message import DecodeError

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, TrustError
from fsl.messages import inference_pb2 as pb
from fsl.messages.identifiers import is_label
from fsl.private_files import read_private

_PURPOSE = b"fsl inference token 1\0"


@checks_types()
@dataclass(frozen=True)
class ServingGrant:
    """Lets whoever shows it ask for inference under this name, until `expires` (seconds since 1970)."""

    name: str
    expires: float

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 100 or not is_label(self.name):
            raise ConfigError(f"name={self.name[:100]!a}: give a name of 1 to 100 characters that can be printed")
        if not math.isfinite(self.expires):
            raise ConfigError(f"expires={self.expires}: give a time in seconds since 1970")


@checks_types()
def sign_grant(key: Ed25519PrivateKey, grant: ServingGrant, purpose: bytes = _PURPOSE) -> bytes:
    """Returns the signed token of a grant. `purpose`: what the signed text begins with, where it is not inference."""
    token = pb.ServingToken(name=grant.name, expires=grant.expires).SerializeToString()
    return pb.SignedServingToken(token=token, signature=key.sign(purpose + token)).SerializeToString()


@checks_types()
def check_grant(token: bytes, keys: Sequence[Ed25519PublicKey], now: float) -> ServingGrant:
    """Returns what a token grants; TrustError where none of these keys signed it, or it has expired by `now`."""
    grant = signed_grant(token, keys, _PURPOSE)
    if grant is None:
        raise TrustError("the token was not signed for inference by this edge's operator")
    if now >= grant.expires:
        raise TrustError(f"the token of {grant.name} has expired {now - grant.expires:.0f} s ago; ask for another")
    return grant


def signed_grant(token: bytes, keys: Sequence[Ed25519PublicKey], purpose: bytes) -> ServingGrant | None:
    """Returns what a token grants, whenever it expires; None where none of these keys signed it for this purpose."""
    try:
        signed = pb.SignedServingToken.FromString(token)
        if not any(_signed_by(key, signed, purpose) for key in keys):
            return None
        said = pb.ServingToken.FromString(signed.token)
        return ServingGrant(said.name, said.expires)
    except (DecodeError, ConfigError):
        return None


def load_operator_key(path: Path) -> Ed25519PrivateKey:
    """Read an operator's private key, Ed25519 in PEM without passphrase; ConfigError for another."""
    data = read_private("key", path)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"key={path}: it is no private key in PEM; fsl-serve key makes one") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"key={path}: it is a {type(key).__name__}; tokens are signed by Ed25519 (fsl-serve key)")
    return key


def load_operator_public_key(path: Path) -> Ed25519PublicKey:
    """Read the public half, by which an edge checks tokens; ConfigError for another file."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"token-key={path}: it cannot be read ({error.strerror}); name a public key's file") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"token-key={path}: it is no public key in PEM; fsl-serve key makes a pair") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"token-key={path}: it is a {type(key).__name__}; tokens are signed by Ed25519")
    return key


def _signed_by(key: Ed25519PublicKey, signed: pb.SignedServingToken, purpose: bytes) -> bool:
    try:
        key.verify(signed.signature, purpose + signed.token)
    except InvalidSignature:
        return False
    return True
