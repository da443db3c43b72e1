"""Development certificates: the chain holds, strangers are refused, and no CA is lost by accident."""

import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from fsl.simulations.fsl_certs import command

from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.errors import ConfigError


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> CertificateFolder:
    folder = tmp_path_factory.mktemp("certs")
    issue(folder, identities(2, 2, {"edge-0": ["edge0.example.org", "192.0.2.7"]}))
    return CertificateFolder(folder)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory) -> CertificateFolder:
    folder = tmp_path_factory.mktemp("strangers")
    issue(folder, identities(1, 1))
    return CertificateFolder(folder)


def load(path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def verifier(files: CertificateFolder) -> PolicyBuilder:
    return PolicyBuilder().store(Store([load(files.ca)]))


@pytest.mark.parametrize(
    ("name", "host"), [("superlink", "localhost"), ("edge-0", "edge0.example.org"), ("edge-1", "localhost")]
)
def test_a_servers_certificate_holds_for_its_hosts(files, name, host):
    chain = verifier(files).build_server_verifier(x509.DNSName(host)).verify(load(files.certificate(name)), [])
    assert len(chain) == 2


def test_a_host_of_one_edge_is_not_another_edges(files):
    with pytest.raises(VerificationError):
        verifier(files).build_server_verifier(x509.DNSName("edge0.example.org")).verify(
            load(files.certificate("edge-1")), []
        )


def test_a_device_is_known_by_its_name_and_is_no_server(files):
    certificate = load(files.certificate("device-1"))
    verified = verifier(files).build_client_verifier().verify(certificate, [])
    assert [name.value for name in verified.subjects] == ["device-1"]
    with pytest.raises(VerificationError):
        verifier(files).build_server_verifier(x509.DNSName("device-1")).verify(certificate, [])


def test_validity_and_serial_numbers_are_sane(files):
    now, serials = datetime.now(UTC), set()
    for name in ["superlink", "edge-0", "edge-1", "device-0", "device-1"]:
        certificate = load(files.certificate(name))
        serials.add(certificate.serial_number)
        assert certificate.not_valid_before_utc < now < certificate.not_valid_after_utc
        assert certificate.not_valid_after_utc <= load(files.ca).not_valid_after_utc <= now + timedelta(days=366)
    assert len(serials) == 5


def test_node_keys_are_what_flower_reads(files):
    private = load_ssh_private_key(files.node_key("device-0").read_bytes(), None)
    public = load_ssh_public_key(files.node_public_key("device-0").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_private_keys_are_for_their_owner_only(files):
    private = {files.ca_key, files.key("superlink"), files.key("device-0"), files.node_key("edge-1")}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """One byte over TLS on the loopback, and the name that the server's certificate gives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                connection = listener.accept()[0]
                with server.wrap_socket(connection, server_side=True) as tls:
                    tls.sendall(b"x")
            except OSError:
                pass  # refused: the client says so

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname="localhost") as tls,
            ):
                if tls.recv(1) != b"x":
                    raise ConnectionResetError
                return str(tls.getpeercert()["subject"][0][0][1])
        finally:
            thread.join(10)


def server_context(files: CertificateFolder) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(files.ca))
    context.load_cert_chain(files.certificate("edge-0"), files.key("edge-0"))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(trusted: CertificateFolder, own: CertificateFolder | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trusted.ca))
    if own:
        context.load_cert_chain(own.certificate("device-0"), own.key("device-0"))
    return context


def test_device_and_edge_know_each_other(files):
    assert handshake(server_context(files), client_context(files, files)) == "edge-0"


def test_a_device_refuses_an_edge_of_another_ca(files, strangers):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(strangers), client_context(files, files))


@pytest.mark.parametrize("with_certificate", [False, True])
def test_an_edge_refuses_a_stranger(files, strangers, with_certificate):
    with pytest.raises(OSError, match=r"alert|reset|^$"):
        handshake(server_context(files), client_context(files, strangers if with_certificate else None))


def test_an_existing_ca_is_kept_unless_told(tmp_path, capsys):
    folder = tmp_path / "certs"
    assert command([str(folder), "--edges", "1", "--devices", "1"]) == 0
    assert str(folder / "device-0.pem") in capsys.readouterr().out
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    ca, device = (folder / "ca.pem").read_bytes(), (folder / "device-0.pem").read_bytes()
    assert command([str(folder), "--devices", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ca.pem is there already" in line
    assert command([str(folder), "--devices", "2", "--add"]) == 0
    assert (folder / "ca.pem").read_bytes() == ca
    assert (folder / "device-0.pem").read_bytes() == device
    verifier(CertificateFolder(folder)).build_client_verifier().verify(load(folder / "device-1.pem"), [])
    assert command([str(folder), "--devices", "2", "--force"]) == 0
    assert (folder / "ca.pem").read_bytes() != ca


def test_what_cannot_be_added_to_is_said(tmp_path, files):
    issue(tmp_path, identities(0, 0))
    CertificateFolder(tmp_path).ca_key.write_bytes(files.ca_key.read_bytes())
    with pytest.raises(ConfigError, match="is not the key of"):
        issue(tmp_path, identities(0, 1), add=True)
    CertificateFolder(tmp_path).ca_key.write_text("nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        issue(tmp_path, identities(0, 1), add=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "a b"], "host 'a b' is neither a host name nor an address"),
        (["--host", "edge-7=a"], "there is no 'edge-7' to name a host of"),
        (["--days", "0"], "days=0"),
        (["--devices", "-1"], "counts"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, said):
    assert command([str(tmp_path / "certs"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_folder_that_is_a_file_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command([str(tmp_path / "file")]) == 2
    assert "cannot be made a folder" in capsys.readouterr().err
