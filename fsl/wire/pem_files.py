"""Watches the certificate files of one end, so that new ones count without a restart."""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fsl.errors import ConfigError
from fsl.private_files import read_private

log = logging.getLogger(__name__)
_LOOK = 1.0  # seconds between two looks at the disk, at least
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
Names = tuple[str, str, str]  # of the files of `ca`, `certificate` and `key` in a node's configuration


@dataclass(frozen=True)
class Pem:
    """What the files hold, PEM; None where there is no such file."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


class PemFiles:
    """Gives what an end's certificate files hold now; any thread may ask.

    A file that was replaced on the disk counts from the next question on, with the others: where one cannot be read,
    is half written, or the key is not the certificate's, those of before go on to count, and the log says why.
    ConfigError where that is so from the beginning. `names`: of the files, for these messages.
    """

    def __init__(
        self, ca: Path | None, certificate: Path | None, key: Path | None, names: Names = ("ca", "cert", "cert-key")
    ) -> None:
        self.paths = (ca, certificate, key)
        self._names = names
        self._lock = threading.Lock()
        self._stamps = self._stamp()
        self._looked = time.monotonic()
        self._pem = self._read()
        self._version = 1
        self._fault = ""

    def present(self) -> tuple[Pem, int]:
        """Returns what the files hold, and a number that grows when they are replaced."""
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK:
                self._looked = time.monotonic()
                self._look()
            return self._pem, self._version

    @property
    def version(self) -> int:
        """The number of the present files."""
        return self.present()[1]

    def _look(self) -> None:
        stamps = self._stamp()
        if stamps == self._stamps and not self._fault:
            return
        self._stamps = stamps
        try:
            pem = self._read()
        except ConfigError as error:
            if str(error) != self._fault:
                log.warning("%s; new connections go on with the files of before", error)
            self._fault = str(error)
            return
        self._fault = ""
        if pem != self._pem:
            self._pem, self._version = pem, self._version + 1
            log.info("new certificate files count from now on: %s", ", ".join(str(p) for p in self.paths if p))

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp(path) for path in self.paths)

    def _read(self) -> Pem:
        ca, certificate, key = self.paths
        private = None if key is None else read_private(self._names[2], key)
        own = None if certificate is None else _certificates(self._names[1], certificate)
        if private is not None and own is not None:
            _refuse_misfit(private, own, f"{self._names[2]}={key}", f"{self._names[1]}={certificate}")
        return Pem(None if ca is None else _certificates(self._names[0], ca), own, private)


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _certificates(name: str, path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name}={path}: it cannot be read ({error.strerror}); name a PEM file") from None
    if not data.count(_BEGIN) or data.count(_BEGIN) != data.count(_END):
        raise ConfigError(f"{name}={path}: it holds no certificate in PEM, or a part of one")
    return data


def _refuse_misfit(key: bytes, certificate: bytes, key_name: str, certificate_name: str) -> None:
    """Raise ConfigError for a key that is not the certificate's."""
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{key_name}: it is no private key in PEM without a passphrase, or a part of one") from None
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(f"{certificate_name}: it holds no certificate in PEM, or a part of one") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != public.public_bytes(*form):
        raise ConfigError(f"{key_name}: it is not the key of {certificate_name}; give both of one pair")
