"""Keeps what is not encrypted, and edges that everybody may ask, on one machine."""

import ipaddress
from collections.abc import Sequence

from fsl.errors import ConfigError
from fsl.wire.options import Certificates


def refuse_open(name: str, listen: str, certificates: Certificates | None, keys: Sequence[object] | None) -> None:
    """ConfigError for an edge without TLS, or without a way to know its devices, where others can reach it."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ConfigError(f"{name}={listen}: give host:port, as 0.0.0.0:9090 or 127.0.0.1:0")
    if keys is not None and not keys:
        raise ConfigError("token_keys=[]: nobody could ask; give an operator's public key")
    if is_loopback(host):
        return
    if certificates is None:
        raise ConfigError(
            f"{name}={listen}: without TLS an edge serves only its own machine; give certificates, or listen at "
            "127.0.0.1"
        )
    if keys is None and certificates.ca is None:
        raise ConfigError(
            f"{name}={listen}: everybody could ask; give the public key by which devices' tokens are signed (or a "
            "client CA, for devices with certificates), or listen at 127.0.0.1"
        )


def port_behind(listen: str) -> str:
    """Returns host:port of the next port; of any free one, where `listen` is so."""
    host, _, port = listen.rpartition(":")
    return f"{host}:{int(port) + 1 if int(port) else 0}"


def refuse_unencrypted(address: str) -> None:
    """ConfigError for an edge on another machine that a device would ask without TLS."""
    if not is_loopback(address.rpartition(":")[0]):
        raise ConfigError(
            f"edges: {address} is another machine, and without TLS everybody on the way reads what is sent; give "
            "certificates (Certificates() counts the machine's own authorities)"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host, by its name or number."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
