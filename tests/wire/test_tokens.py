"""Tokens and proofs: what the cloud signs nobody else can, and a token serves only the holder of its key."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fsl.errors import ConfigError, TrustError
from fsl.messages import messages_pb2 as pb
from fsl.wire.tokens import (
    Claims,
    Signer,
    check_proof,
    check_token,
    fingerprint,
    load_private_key,
    prove,
    public_bytes,
    registered_key,
)

CLAIMS = Claims("run", 3, 7, (0, 2), 40, 360, 9, b"f" * 32)
KEYS = [Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())]
keys = pytest.mark.parametrize("key", KEYS, ids=["ed25519", "p384", "p256"])


def test_an_edge_reads_what_the_cloud_signed():
    signer = Signer()
    assert check_token(signer.sign(CLAIMS), signer.public_key) == CLAIMS


def test_every_bit_of_a_token_counts():
    signer = Signer()
    token = signer.sign(CLAIMS)
    for position in range(len(token)):
        for bit in (1, 128):
            forged = bytearray(token)
            forged[position] ^= bit
            with pytest.raises(TrustError, match="not signed by this run's cloud"):
                check_token(bytes(forged), signer.public_key)


def test_a_token_of_another_run_s_cloud_is_refused():
    with pytest.raises(TrustError, match="not signed"):
        check_token(Signer().sign(CLAIMS), Signer().public_key)


def test_a_proof_is_no_token():
    # A signature is bound to its purpose: what the cloud's key signs as anything else is no token.
    key = Ed25519PrivateKey.generate()
    said = pb.Token(run="run", round=3).SerializeToString()
    signed = pb.SignedToken(token=said, signature=key.sign(said)).SerializeToString()
    with pytest.raises(TrustError):
        check_token(signed, key.public_key().public_bytes_raw())


@keys
def test_the_holder_of_a_key_can_prove_it(key):
    public = public_bytes(key.public_key())
    check_proof(prove(key, b"nonce", 1, b"token"), public, b"nonce", 1, b"token")


@keys
@pytest.mark.parametrize(("nonce", "edge", "token"), [(b"other", 1, b"t"), (b"nonce", 2, b"t"), (b"nonce", 1, b"u")])
def test_a_proof_serves_one_challenge_of_one_edge_for_one_token(key, nonce, edge, token):
    proof = prove(key, b"nonce", 1, b"t")
    with pytest.raises(TrustError, match="did not prove"):
        check_proof(proof, public_bytes(key.public_key()), nonce, edge, token)


@keys
def test_another_key_proves_nothing(key):
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(TrustError, match="did not prove"):
        check_proof(prove(stranger, b"n", 1, b"t"), public_bytes(key.public_key()), b"n", 1, b"t")


@pytest.mark.parametrize("public", [b"", b"no key at all", b"\x30\x82" + b"\0" * 40])
def test_what_is_no_key_proves_nothing(public):
    with pytest.raises(TrustError, match="did not prove"):
        check_proof(b"signature", public, b"n", 1, b"t")


def test_a_device_has_the_key_that_flower_registered_it_by():
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(registered_key(pem)) == fingerprint(public_bytes(key.public_key()))
    with pytest.raises(TrustError, match="no public key in PEM"):
        registered_key(b"")


@keys
@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.OpenSSH], ids=["pem", "openssh"])
def test_private_keys_are_read_in_both_formats(key, form, tmp_path):
    path = tmp_path / "key"
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
    path.chmod(0o600)
    assert public_bytes(load_private_key(path).public_key()) == public_bytes(key.public_key())


def test_a_file_that_is_no_key_is_one_line(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match=r"^key=.*cannot be read \(No such file or directory\)"):
        load_private_key(path)
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"^key=.*is no private key"):
        load_private_key(path)
    pem = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match="allowed are Ed25519 and NIST curves"):
        load_private_key(path)


def test_claims_differ_in_every_field():
    # What is signed holds all of them: a changed claim is another token.
    signer = Signer()
    changed = {"run": "x", "round": 4, "device": 8, "edges": (1,), "steps": 41, "samples": 1, "fence": 8}
    for name, value in changed.items():
        other = replace(CLAIMS, **{name: value})
        assert check_token(signer.sign(other), signer.public_key) == other != CLAIMS
