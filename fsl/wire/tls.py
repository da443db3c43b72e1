"""TLS of the lean streams, from the same files as gRPC's."""

import ssl

from fsl.errors import ConfigError
from fsl.private_files import read_private
from fsl.wire.options import Certificates


def server_context(certificates: Certificates) -> ssl.SSLContext:
    """Returns an edge's context; ConfigError for a file that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a stream is opened once a round: nothing to resume
    if certificates.ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return _loaded(context, certificates)


def client_context(certificates: Certificates) -> ssl.SSLContext:
    """Returns a device's context; without `ca` the machine's own authorities count."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificates.ca is None:
        context.load_default_certs()
    return _loaded(context, certificates)


def _loaded(context: ssl.SSLContext, certificates: Certificates) -> ssl.SSLContext:
    try:
        if certificates.ca is not None:
            context.load_verify_locations(certificates.ca)
        if certificates.certificate is not None and certificates.key is not None:
            read_private("cert-key", certificates.key)  # refuses a key that others may read
            context.load_cert_chain(certificates.certificate, certificates.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"a certificate cannot be used ({error}); name PEM files that belong together") from None
    return context
