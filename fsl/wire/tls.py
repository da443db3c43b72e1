"""TLS of the lean streams, from the same files as gRPC's."""

import logging
import ssl

from fsl.errors import ConfigError
from fsl.wire.options import Certificates

log = logging.getLogger(__name__)


class TlsContexts:
    """Gives an end's context for a connection that begins now, by its certificate files as they are then.

    ConfigError where they cannot be used from the beginning; later, the context of before goes on to count.
    """

    def __init__(self, certificates: Certificates, server: bool) -> None:
        self._certificates = certificates
        self._server = server
        self._files = certificates.edge_files() if server else certificates.device_files()
        self._version = self._files.version
        self._context = self._built()

    def present(self) -> ssl.SSLContext:
        """Returns the context."""
        if (version := self._files.version) != self._version:
            try:
                self._context, self._version = self._built(), version
            except ConfigError as error:  # the files change this very moment: the next connection looks again
                log.info("%s", error)
        return self._context

    def _built(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if self._server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        given = self._certificates
        if self._server:
            context.num_tickets = 0  # a stream is opened once a round: nothing to resume
            context.verify_mode = ssl.CERT_NONE if given.ca is None else ssl.CERT_REQUIRED
        try:
            if given.ca is not None:
                context.load_verify_locations(given.ca)
            elif not self._server:
                context.load_default_certs()  # the machine's own authorities count
            if given.certificate is not None and given.key is not None:
                context.load_cert_chain(given.certificate, given.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"a certificate cannot be used ({error}); name PEM files that belong together") from None
        return context
