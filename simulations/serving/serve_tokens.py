"""`fsl-serve key` and `fsl-serve token`: an operator's keys, and tokens that they sign."""

import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from fsl.simulations.serving.serve_options import ServeOptions

from fsl.errors import ConfigError
from fsl.files import write_bytes, write_text
from fsl.inference.serving.serving_tokens import (
    ServingGrant,
    load_operator_key,
    load_operator_public_key,
    sign_grant,
)
from fsl.private_files import read_private
from fsl.wire.options import Certificates

KEY_OPTIONS = ("out",)
TOKEN_OPTIONS = ("key", "name", "days", "out")
_DAY = 86400.0


def make_key(arguments: Sequence[str]) -> None:
    """Write an operator's key pair into a folder."""
    options = ServeOptions(arguments, KEY_OPTIONS)
    folder = options.path("out", ".")
    private, public = folder / "operator-key.pem", folder / "operator-public.pem"
    for path in (private, public):
        if path.exists():
            raise ConfigError(f"out={folder}: {path} is there already, and tokens may be signed by it; name another")
    folder.mkdir(parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    write_bytes(private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)
    write_bytes(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    print(f"{private}: keep it to yourself; it signs tokens")
    print(f"{public}: edges check tokens by it, as token-key={public}")


def make_token(arguments: Sequence[str]) -> None:
    """Write a token into a file."""
    options = ServeOptions(arguments, TOKEN_OPTIONS)
    key, name = load_operator_key(options.path("key")), options.text("name")
    days = options.number("days", 30.0)
    assert days is not None
    grant = ServingGrant(name, time.time() + days * _DAY)
    path = options.path("out", f"{name}.token")
    if path.exists():
        raise ConfigError(f"out={path}: it is there already; name another file")
    write_text(path, sign_grant(key, grant).hex() + "\n", private=True)
    print(f"{path}: lets {name} ask for {days:g} days; give it to that device alone")


def read_token(path: Path) -> bytes:
    """Returns the token in a file; ConfigError where it holds none, or others may read it."""
    data = read_private("token", path)
    try:
        return bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        raise ConfigError(f"token={path}: it holds no token; fsl-serve token makes one") from None


def certificates_of_edge(options: ServeOptions) -> Certificates | None:
    """Returns the certificate files of whom others ask; None with insecure=true. ConfigError where some are missing."""
    certificates = options.certificates({"ca": "client-ca", "certificate": "cert", "key": "cert-key"})
    if certificates is not None and (certificates.certificate is None or certificates.key is None):
        raise ConfigError(
            "an edge needs cert and cert-key (fsl-certs makes them for trying); insecure=true does without TLS, on "
            "this machine alone"
        )
    return certificates


def operator_keys(options: ServeOptions) -> list[Ed25519PublicKey] | None:
    """Returns the public keys by which tokens are checked; None where everybody may ask."""
    return [load_operator_public_key(options.path("token-key"))] if options.has("token-key") else None
