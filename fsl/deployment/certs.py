"""Makes development certificates: a CA, TLS certificates that it signs, and the SuperNodes' key pairs.

They are for trials and tests. Where devices belong to others, use a CA that keeps its key apart from them.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fsl.errors import ConfigError
from fsl.files import write_bytes
from fsl.private_files import read_private

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LONGEST = 3650
_EARLIER = timedelta(hours=1)  # a device whose clock is a little slow accepts them then
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class CertificateOwner:
    """Somebody who gets a certificate: its name, the host names and addresses it answers to, and its roles."""

    name: str
    hosts: tuple[str, ...]
    server: bool = False
    client: bool = False
    node: bool = False  # a SuperNode: it also gets a key pair by which the SuperLink knows it


@dataclass(frozen=True)
class CertificateFolder:
    """Names the files in a folder of certificates."""

    folder: Path

    @property
    def ca(self) -> Path:
        """Path of the CA's certificate, which everybody has."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Path of the CA's private key: whoever has it can pass for anybody."""
        return self.folder / "ca-key.pem"

    def certificate(self, name: str) -> Path:
        """Returns the path of a TLS certificate, in PEM."""
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """Returns the path of a TLS certificate's private key, PKCS#8 in PEM."""
        return self.folder / f"{name}-key.pem"

    def node_key(self, name: str) -> Path:
        """Returns the path of the private key by which the SuperLink knows a SuperNode, in OpenSSH's format."""
        return self.folder / f"{name}-node"

    def node_public_key(self, name: str) -> Path:
        """Returns the path of the public half, for `flwr supernode register`."""
        return self.folder / f"{name}-node.pub"


def identities(
    edges: int, devices: int, hosts: Mapping[str, Sequence[str]] | None = None, tops: int = 0
) -> list[CertificateOwner]:
    """List the SuperLink, the edges, the servers above the first `tops` of them, and the devices.

    `hosts` adds host names to each, by its name.
    """
    more = {name: tuple(names) for name, names in (hosts or {}).items()}
    found = [CertificateOwner("superlink", LOOPBACK, server=True)]
    found += [CertificateOwner(f"edge-{i}", LOOPBACK, server=True, client=True, node=True) for i in range(edges)]
    found += [CertificateOwner(f"top-{i}", LOOPBACK, server=True, node=True) for i in range(tops)]
    found += [CertificateOwner(f"device-{i}", (f"device-{i}",), client=True, node=True) for i in range(devices)]
    for name in more:
        if name not in {one.name for one in found}:
            raise ConfigError(f"there is no '{name}' to name a host of; there are: {', '.join(i.name for i in found)}")
    return [
        CertificateOwner(i.name, tuple(dict.fromkeys(i.hosts + more.get(i.name, ()))), i.server, i.client, i.node)
        for i in found
    ]


def issue(
    folder: Path, wanted: Sequence[CertificateOwner], days: int = 365, add: bool = False, force: bool = False
) -> list[Path]:
    """Make a CA in this folder, and the certificates and keys of `wanted`; returns the paths that it wrote.

    With `add`, it keeps the folder's CA and makes only what is missing; with `force` it makes all anew. Otherwise it
    refuses a folder with a CA: ConfigError, as for an invalid value.
    """
    if not 1 <= days <= _LONGEST:
        raise ConfigError(f"days={days}: a certificate is valid for 1 to {_LONGEST} days")
    files = CertificateFolder(folder)
    if files.ca.exists() and not (add or force):
        raise ConfigError(f"{files.ca} is there already; --add makes what is missing with it, --force a new CA")
    names = [name for identity in wanted for name in identity.hosts]
    hosts = {name: _general_name(name) for name in names}
    _make_folder(folder)
    written: list[Path] = []

    def write(path: Path, data: bytes, private: bool = False) -> None:
        write_bytes(path, data, private=private)
        written.append(path)

    made = not files.ca.exists() or force
    now = datetime.now(UTC).replace(microsecond=0)
    if made:
        files.ca.unlink(missing_ok=True)
        key = ec.generate_private_key(ec.SECP384R1())
        ca = _certify_ca(key, now, days)
        write(files.ca_key, _pem(key), private=True)
    else:
        ca, key = _read_ca(files, now)
    for identity in wanted:
        if made or not (files.certificate(identity.name).exists() and files.key(identity.name).exists()):
            own = ec.generate_private_key(ec.SECP256R1())
            certificate = _certify(identity, [hosts[name] for name in identity.hosts], own, ca, key, now, days)
            write(files.key(identity.name), _pem(own), private=True)
            write(files.certificate(identity.name), certificate.public_bytes(Encoding.PEM))
        if identity.node and (made or not files.node_public_key(identity.name).exists()):
            _write_node_key(files, identity.name, write)
    if made:
        write(files.ca, ca.public_bytes(Encoding.PEM))  # last: a folder with a CA is a complete one
    return written


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # an existing folder keeps its mode
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made a folder ({error.strerror}); choose another") from None


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if len(name) > 253 or not _HOST.fullmatch(name):
        raise ConfigError(f"host '{name}' is neither a host name nor an address; give one such as edge0.example.org")
    return x509.DNSName(name)


def _certify_ca(key: ec.EllipticCurvePrivateKey, now: datetime, days: int) -> x509.Certificate:
    name = _name("fsl development CA")
    public = key.public_key()
    return (
        _builder(name, name, public, now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA384())
    )


def _certify(
    identity: CertificateOwner,
    hosts: Sequence[x509.GeneralName],
    own: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * identity.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * identity.client
    until = min(now + timedelta(days=days), ca.not_valid_after_utc)
    known = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(_name(identity.name), ca.subject, own.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(until)
    )


def _usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _read_ca(files: CertificateFolder, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    pem = read_private("the CA's key", files.ca_key)
    try:
        ca = x509.load_pem_x509_certificate(files.ca.read_bytes())
        key = load_pem_private_key(pem, password=None)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the CA in {files.folder} cannot be read ({reason}); fsl-certs --force makes a new one"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ca.public_key():
        raise ConfigError(f"{files.ca_key} is not the key of {files.ca}; fsl-certs --force makes a new CA")
    if ca.not_valid_after_utc <= now:
        raise ConfigError(
            f"{files.ca} was valid until {ca.not_valid_after_utc:%Y-%m-%d}; fsl-certs --force makes a new CA"
        )
    return ca, key


def _write_node_key(files: CertificateFolder, name: str, write: Callable[..., None]) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    write(files.node_key(name), key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), private=True)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write(files.node_public_key(name), public + f" {name}\n".encode())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
