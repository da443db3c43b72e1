"""Who may train what: tokens that the cloud signs, and proofs that a device holds its key.

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

_TOKEN = b"fsl token 1\0"  # what is signed begins with its purpose, so that no signature can serve another
_PROOF = b"fsl proof 1\0"


@dataclass(frozen=True)
class Claims:
    """What a device may do in one round."""

    run: str
    round: int
    device: int
    edges: tuple[int, ...]  # where
    steps: int  # uploads at most
    samples: int  # n_k, what the device stands for in averages
    fence: int  # of two sessions for one round, the higher counts
    fingerprint: bytes  # of the device's public key


class Signer:
    """The cloud's key for one run; it never leaves the cloud's memory."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> bytes:
        """What edges check tokens with (32 bytes)."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, claims: Claims) -> bytes:
        """The token that says so."""
        token = pb.Token(**{f.name: getattr(claims, f.name) for f in fields(claims)}).SerializeToString()
        return pb.SignedToken(token=token, signature=self._key.sign(_TOKEN + token)).SerializeToString()


def check_token(token: bytes, public_key: bytes) -> Claims:
    """What a token says; TrustError if the cloud did not sign it."""
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
    )


def load_private_key(path: Path) -> PrivateKey:
    """A device's private key: the SuperNode's own (NIST curve) or Ed25519, PEM or OpenSSH, without a passphrase."""
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
    """A public key as DER SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def registered_key(data: bytes) -> bytes:
    """A public key as Flower registers SuperNodes by (PEM), as DER; TrustError if it is none."""
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise TrustError("a node's registered key is no public key in PEM") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public_key: bytes) -> bytes:
    """What a token names a key by: SHA-256 of its DER."""
    return hashlib.sha256(public_key).digest()


def prove(key: PrivateKey, nonce: bytes, edge: int, token: bytes) -> bytes:
    """A device's answer to an edge's challenge."""
    said = _said(nonce, edge, token)
    return key.sign(said) if isinstance(key, Ed25519PrivateKey) else key.sign(said, ec.ECDSA(hashes.SHA256()))


def check_proof(signature: bytes, public_key: bytes, nonce: bytes, edge: int, token: bytes) -> None:
    """TrustError unless the holder of this public key signed the challenge."""
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
    # The edge is in it, so that an edge cannot pass a proof on to another and train in the device's name.
    return _PROOF + hashlib.sha256(nonce + edge.to_bytes(8, "little") + token).digest()
