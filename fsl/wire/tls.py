"""TLS of the lean streams, from the same files as gRPC's."""

import logging
import ssl

from fsl.errors import ConfigError
from fsl.wire.pem_files import PemFiles

log = logging.getLogger(__name__)


class TlsContexts:
    """Gives an end's context for a connection that begins now, by its certificate files as they are then.

    ConfigError where they cannot be used from the beginning; later, the context of before goes on to count.
    """

    def __init__(self, files: PemFiles, server: bool) -> None:
        self._server = server
        self._files = files
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
        ca, certificate, key = self._files.paths
        if self._server:
            context.num_tickets = 0  # a stream is opened once a round: nothing to resume
            context.verify_mode = ssl.CERT_NONE if ca is None else ssl.CERT_REQUIRED
        try:
            if ca is not None:
                context.load_verify_locations(ca)
            elif not self._server:
                context.load_default_certs()  # the machine's own authorities count
            if certificate is not None and key is not None:
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"a certificate cannot be used ({error}); name PEM files that belong together") from None
        return context
