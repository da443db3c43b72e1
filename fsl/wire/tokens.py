"""Signs and checks tokens, by which the cloud says who may train what, and proofs that a device holds its key.

An edge can check a token but not make one: it has the cloud's public key. A token names the device's key by its
fingerprint, so that it is of no use to anybody else, and expires by round, since a device may have no reliable clock.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)
from google.protobuf.message import DecodeError

from fsl.errors import ConfigError, TrustError
from fsl.messages import messages_pb2 as pb
from fsl.private_files import read_private

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey

_TOKEN = b"fsl token 1\0"  # each signed text begins with its purpose, so that no signature can serve another
_PROOF = b"fsl proof 1\0"


@dataclass(frozen=True)
class Claims:
    """What a token grants a device in one round."""

    run: str
    round: int
    device: int
    edges: tuple[int, ...]  # the edges that it may open a session at
    steps: int  # at most so many uploads
    samples: int  # n_k, the device's weight in averages
    fence: int  # of two sessions for one round, the higher counts
    fingerprint: bytes  # of the device's public key; for the top, of its edge's
    top: bool = False  # at the server above the edge, and not at the edge


class Signer:
    """The cloud's key for one run; it never leaves the cloud's memory."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> bytes:
        """Returns the public key (32 bytes) by which edges check tokens."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, claims: Claims) -> bytes:
        """Returns the signed token of these claims."""
        token = pb.Token(**{f.name: getattr(claims, f.name) for f in fields(claims)}).SerializeToString()
        return pb.SignedToken(token=token, signature=self._key.sign(_TOKEN + token)).SerializeToString()


def check_token(token: bytes, public_key: bytes) -> Claims:
    """Read a token's claims; TrustError if the cloud did not sign it."""
    try:
        signed = pb.SignedToken.FromString(token)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signed.signature, _TOKEN + signed.token)
        said = pb.Token.FromString(signed.token)
    except (InvalidSignature, DecodeError):
        raise TrustError("the token was not signed by this run's cloud") from None
    return Claims(
        said.run,
        said.round,
        said.device,
        tuple(said.edges),
        said.steps,
        said.samples,
        said.fence,
        said.fingerprint,
        said.top,
    )


def load_private_key(path: Path) -> PrivateKey:
    """Read a device's private key: the SuperNode's own (NIST curve) or Ed25519, PEM or OpenSSH, without passphrase."""
    data = read_private("key", path)
    try:
        load = load_ssh_private_key if b"OPENSSH" in data[:64] else load_pem_private_key
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key={path}: it is no private key ({error}); fsl-certs makes keys") from None
    if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise ConfigError(f"key={path}: it is a {type(key).__name__}; allowed are Ed25519 and NIST curves")
    return key


def public_bytes(key: PublicKey) -> bytes:
    """Encode a public key as DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def registered_key(data: bytes) -> bytes:
    """Convert the public key by which Flower registers a SuperNode from PEM to DER; TrustError if it is none."""
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError("a node's registered key is no public key in PEM") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public_key: bytes) -> bytes:
    """Returns the SHA-256 of a public key's DER, by which a token names the key."""
    return hashlib.sha256(public_key).digest()


def prove(key: PrivateKey, nonce: bytes, edge: int, token: bytes) -> bytes:
    """Sign an edge's challenge with a device's key."""
    said = _said(nonce, edge, token)
    return key.sign(said) if isinstance(key, Ed25519PrivateKey) else key.sign(said, ec.ECDSA(hashes.SHA256()))


def check_proof(signature: bytes, public_key: bytes, nonce: bytes, edge: int, token: bytes) -> None:
    """Raise TrustError unless the holder of this public key signed the challenge."""
    said = _said(nonce, edge, token)
    try:
        key = load_der_public_key(public_key)
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, said)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, said, ec.ECDSA(hashes.SHA256()))
        else:
            raise TrustError(f"a device's key is a {type(key).__name__}; allowed are Ed25519 and NIST curves")
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise TrustError("the device did not prove that it holds its key") from None


def _said(nonce: bytes, edge: int, token: bytes) -> bytes:
    # It contains the edge, so that no edge can pass a proof on to another and train in the device's name.
    return _PROOF + hashlib.sha256(nonce + edge.to_bytes(8, "little") + token).digest()
