"""Who may ask: tokens of an operator, which are good for inference alone, and end."""

import math
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.deployment.processes import wait_until
from fsl.errors import ConfigError, TrustError
from fsl.inference.serving import InferenceDevice, InferenceEdge, ServingGrant, UnansweredError, check_grant, sign_grant
from fsl.inference.serving.serving_tokens import load_operator_key, load_operator_public_key
from fsl.messages import inference_pb2 as pb
from fsl.messages import messages_pb2
from fsl.wire.options import Certificates
from fsl.wire.tokens import Claims, Signer, check_token
from tests.helpers.served import batch, served

KEY = Ed25519PrivateKey.generate()
GRANT = ServingGrant("till-3", 1000.0)
UNSIGNED = "not signed for inference by this edge's operator"


def public(key=KEY):
    return [key.public_key()]


def test_an_edge_reads_what_its_operator_signed_until_it_expires():
    token = sign_grant(KEY, GRANT)
    assert check_grant(token, public(), 999.0) == GRANT
    with pytest.raises(TrustError, match=r"the token of till-3 has expired 1 s ago"):
        check_grant(token, public(), 1001.0)
    with pytest.raises(TrustError, match="expired"):
        check_grant(token, public(), 1000.0)


def test_every_bit_of_a_token_counts():
    token = sign_grant(KEY, GRANT)
    for position in range(len(token)):
        for bit in (1, 128):
            forged = bytearray(token)
            forged[position] ^= bit
            with pytest.raises(TrustError, match=UNSIGNED):
                check_grant(bytes(forged), public(), 0.0)


def test_a_token_of_another_key_is_refused_and_one_of_several_keys_is_taken():
    other = Ed25519PrivateKey.generate()
    with pytest.raises(TrustError, match=UNSIGNED):
        check_grant(sign_grant(other, GRANT), public(), 0.0)
    assert check_grant(sign_grant(other, GRANT), [*public(), *public(other)], 0.0) == GRANT


def test_a_token_of_training_is_none_for_inference_and_the_other_way_round():
    """Also where one key signs both, and where the same bytes would say something in both."""
    signer = Signer()
    training = signer.sign(Claims("run", 1, 2, (0,), 3, 4, 5, b"f" * 32))
    assert check_token(training, signer.public_key).device == 2
    with pytest.raises(TrustError, match=UNSIGNED):
        check_grant(training, [signer._key.public_key()], 0.0)
    signed = pb.SignedServingToken.FromString(sign_grant(signer._key, GRANT))
    moved = messages_pb2.SignedToken(token=signed.token, signature=signed.signature).SerializeToString()
    with pytest.raises(TrustError, match="not signed by this run's cloud"):
        check_token(moved, signer.public_key)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: ServingGrant("", 1.0), "name='': give a name of 1 to 100 characters"),
        (lambda: ServingGrant("a\nb", 1.0), r"name='a\\nb'"),
        (lambda: ServingGrant("a" * 101, 1.0), "give a name"),
        (lambda: ServingGrant("a", math.nan), "expires=nan"),
        (lambda: ServingGrant(3, 1.0), "name=3: give a text"),
    ],
)
def test_a_grant_that_cannot_be_is_refused(make, line):
    with pytest.raises(ConfigError, match=line):
        make()


def test_keys_are_read_from_files_and_others_are_refused(tmp_path):
    private, public_file, other = tmp_path / "key.pem", tmp_path / "public.pem", tmp_path / "other.pem"
    private.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public_file.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert check_grant(sign_grant(load_operator_key(private), GRANT), [load_operator_public_key(public_file)], 0.0)
    curve = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    other.chmod(0o600)
    with pytest.raises(ConfigError, match="tokens are signed by Ed25519"):
        load_operator_key(other)
    private.write_text("x")
    with pytest.raises(ConfigError, match="it is no private key in PEM"):
        load_operator_key(private)
    with pytest.raises(ConfigError, match="it is no public key in PEM"):
        load_operator_public_key(other)
    with pytest.raises(ConfigError, match=r"token-key=.*it cannot be read"):
        load_operator_public_key(tmp_path / "none.pem")


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (sign_grant(KEY, ServingGrant("till-3", 10.0)), "the token of till-3 has expired"),
        (sign_grant(Ed25519PrivateKey.generate(), GRANT), UNSIGNED),
        (Signer().sign(Claims("run", 1, 2, (0,), 3, 4, 5, b"f" * 32)), UNSIGNED),
        (b"", UNSIGNED),
        (b"\xff" * 40, UNSIGNED),
    ],
    ids=["expired", "another key", "of training", "none", "garbage"],
)
def test_a_device_is_told_why_its_token_does_not_count(token, reason):
    points = served()
    with (
        InferenceEdge(points, token_keys=public(), wall=lambda: 500.0) as edge,
        InferenceDevice(points, [edge.address], token=token) as device,
    ):
        assert reason in device.edges[0].reason
        assert device.infer(batch()).where == "device"
        assert edge.figures.refused == {"UNAUTHENTICATED": 1}


def test_a_stream_ends_when_its_token_does():
    points, now = served(), [500.0]
    with (
        InferenceEdge(points, token_keys=public(), wall=lambda: now[0]) as edge,
        InferenceDevice(points, [edge.address], token=sign_grant(KEY, GRANT), fallback=False) as device,
    ):
        assert device.infer(batch()).where == "edge"
        now[0] = 1000.0
        assert wait_until(lambda: not device.edges[0].is_open, 20, 0.02)
        assert wait_until(lambda: "expired" in device.edges[0].reason, 20, 0.02)
        with pytest.raises(UnansweredError, match="no time was left for an edge"):
            device.infer(batch(), deadline=0.2)


def test_over_tls_only_devices_that_know_the_edge_ask(encrypted, tmp_path):
    points, inputs = served(), batch()
    ca, cert, key = (Path(encrypted["edge_tls"][name]) for name in ("ca", "cert", "cert-key"))
    certificates = Certificates(None, cert, key)
    options = {"token": sign_grant(KEY, GRANT), "connect_seconds": 20.0}
    with InferenceEdge(points, certificates=certificates, token_keys=public(), wall=lambda: 0.0) as edge:
        with InferenceDevice(points, [edge.address], certificates=Certificates(ca), **options) as device:
            assert device.infer(inputs).where == "edge"
            assert device.edges[0].is_lean
        options["connect_seconds"] = 0.5
        for wrong in (Certificates(issue_ca(tmp_path)), None):
            with InferenceDevice(points, [edge.address], certificates=wrong, **options) as device:
                assert device.infer(inputs).where == "device"


def issue_ca(folder):
    """Another CA's certificate."""
    issue(folder, identities(1, 0))
    return CertificateFolder(folder).ca
