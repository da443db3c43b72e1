"""Plans a local federation's SuperNodes: their names, ports, certificates and configurations."""

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fsl.deployment.certs import LOOPBACK, CertificateFolder, CertificateOwner
from fsl.deployment.local.federation_record import SUPERLINK, Config, LocalNode
from fsl.errors import ConfigError


def free_ports(count: int) -> list[int]:
    """Find `count` different ports of the loopback that nobody listens on now."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


def is_listening(port: int) -> bool:
    """Returns whether somebody listens on this port of the loopback."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def groups_of(devices: int, size: int) -> list[range]:
    """Divide devices into groups of `size`, one for each node; the last may be smaller."""
    return [range(first, min(first + size, devices)) for first in range(0, devices, size)]


def identities_of(edges: int, groups: list[range], tops: bool = False) -> list[CertificateOwner]:
    """List who gets a certificate: a node that hosts several devices answers to the name of each."""
    found = [CertificateOwner(SUPERLINK, LOOPBACK, server=True)]
    found += [CertificateOwner(f"edge-{i}", LOOPBACK, server=True, client=True, node=True) for i in range(edges)]
    if tops:
        found += [CertificateOwner(f"top-{i}", LOOPBACK, server=True, node=True) for i in range(edges)]
    return found + [
        CertificateOwner(_name(group), tuple(f"device-{k}" for k in group), client=True, node=True) for group in groups
    ]


def plan_nodes(
    folder: Path,
    certificates: CertificateFolder,
    edges: int,
    groups: list[range],
    data: Path | None = None,
    mutual_tls: bool = False,
    more: Mapping[str, Config] | None = None,
    tops: bool = False,
) -> list[LocalNode]:
    """Plan the edges' nodes, those above them (`tops`), then the devices'.

    `more` adds to single nodes' configuration, by name.
    """
    servers = [(role, i) for role in ("edge", *(["top"] if tops else [])) for i in range(edges)]
    ports = iter(free_ports(4 * len(servers) + 2 * len(groups)))
    nodes = [
        _server(folder, certificates, role, i, next(ports), next(ports), next(ports), mutual_tls) for role, i in servers
    ]
    nodes += [_device(folder, certificates, group, next(ports), data, mutual_tls) for group in groups]
    if serves_metrics():
        nodes = [_with(node, {"metrics": f"127.0.0.1:{next(ports)}"}) for node in nodes]
    for name in more or {}:
        if name not in {node.name for node in nodes}:
            raise ConfigError(f"there is no node '{name}'; there are: {', '.join(node.name for node in nodes)}")
    return [_with(node, (more or {}).get(node.name, {})) for node in nodes]


def _server(
    folder: Path,
    certificates: CertificateFolder,
    role: str,
    index: int,
    port: int,
    serving: int,
    steps: int,
    mutual_tls: bool,
) -> LocalNode:
    name, address = f"{role}-{index}", f"127.0.0.1:{serving}"
    config: dict[str, str | int] = {
        "role": role,
        "edge": index,
        "listen": address,
        "steps-listen": f"127.0.0.1:{steps}",
        "address": address,
        "cert": str(certificates.certificate(name)),
        "cert-key": str(certificates.key(name)),
        "ca": str(certificates.ca),
        "state": str(folder / "state" / name),
    }
    if mutual_tls:
        config["client-ca"] = str(certificates.ca)
    return LocalNode(name, role, config, port, address)


def _device(
    folder: Path, certificates: CertificateFolder, group: range, port: int, data: Path | None, mutual_tls: bool
) -> LocalNode:
    name = _name(group)
    config: dict[str, str | int] = {
        "role": "device",
        "devices": ",".join(map(str, group)),
        "key": str(certificates.node_key(name)),
        "ca": str(certificates.ca),
        "state": str(folder / "state" / name),
    }
    if data is not None:
        config["data-path"] = str(data)
    if mutual_tls:
        config |= {"cert": str(certificates.certificate(name)), "cert-key": str(certificates.key(name))}
    return LocalNode(name, "device", config, port)


def serves_metrics() -> bool:
    """Whether nodes and clouds of this installation can serve metrics: it takes the extra `federation`."""
    return find_spec("prometheus_client") is not None


def _with(node: LocalNode, more: Config) -> LocalNode:
    config = {**node.config, **more}
    return replace(node, config=config, metrics=str(config["metrics"]) if "metrics" in config else None)


def _name(group: range) -> str:
    return f"device-{group[0]}" if len(group) == 1 else f"devices-{group[0]}-{group[-1]}"
