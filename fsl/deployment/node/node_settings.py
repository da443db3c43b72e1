"""Reads a node's own configuration, which nothing from the network overrides."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from fsl.deployment.node.keeping import Keep
from fsl.deployment.node.own_ledger import MAX_DELTA, Accountant, Limit
from fsl.errors import ConfigError, one_of
from fsl.messages.identifiers import is_address
from fsl.privacy.claims import ADVERSARIES
from fsl.wire.device.step_paths import Steps
from fsl.wire.options import Certificates, Limits, Patience

Role = Literal["any", "device", "edge", "both", "top"]
_ROLES = ("any", "device", "edge", "both", "top")
_KEYS: dict[str, type | tuple[type, ...]] = {
    "role": str,
    "devices": (str, int),
    "edge": int,
    "listen": str,
    "steps-listen": str,
    "address": str,
    "edge-addresses": str,
    "steps": str,
    "key": str,
    "ca": str,
    "cert": str,
    "cert-key": str,
    "client-ca": str,
    "insecure": bool,
    "state": str,
    "keep-runs": int,
    "keep-days": (int, float),
    "keep-bytes": (int, str),
    "data-path": str,
    "data-name": str,
    "data-tokenizer": str,
    "rows": str,
    "allow": str,
    "accelerator": str,
    "hardware": str,
    "metrics": str,
    "location": str,
    "join": (int, float),
    "straggler": (int, float),
    "answer": (int, float),
    "max-message-bytes": int,
    "max-epsilon": (int, float),
    "max-epsilon-against": str,
    "max-delta": (int, float),
    "accountant": str,
}
_PATIENCE = ("join", "straggler", "answer")
_OF_DEVICES = ("devices", "location", "accountant")
_OF_EDGES = ("edge", "listen", "steps-listen", "address", "client-ca")
_CERTIFICATES = ("ca", "cert", "cert-key", "client-ca")
_FLOWERS_OWN = ("partition-id", "num-partitions")  # Flower's simulation engine gives them to every node


@dataclass(frozen=True)
class NodeSettings:
    """A node's configuration (`flower-supernode --node-config`), checked.

    `role`: "device" hosts devices, "edge" an edge server, "both" both, "top" the server above edge number `edge` (two
    hops), and "any" (without a role) whole cohorts in its own process, as in a simulation. `rows`: "partition" takes
    the rows of the node's data that the run's partition gives to its devices; "all" takes all of them, for a device's
    own data. `steps_listen`: host:port of an edge's lean streams, by default the port after `listen`'s; None: gRPC
    carries steps. `steps`: as in `StepPaths`, of devices, and of an edge to the server above it.
    """

    role: Role = "any"
    devices: tuple[int, ...] = ()
    edge: int = 0
    listen: str = ""
    steps_listen: str | None = None
    address: str = ""
    edge_addresses: Mapping[int, str] = field(default_factory=dict)  # edges' addresses, as seen from here
    steps: Steps = "auto"
    key: Path | None = None
    device_certificates: Certificates | None = None  # None: without TLS
    edge_certificates: Certificates | None = None
    state: Path | None = None
    keep: Keep = field(default_factory=Keep)  # what old runs leave on disk, besides the present one's
    data_path: str | None = None
    data_name: str | None = None
    data_tokenizer: str | None = None
    rows: Literal["partition", "all"] = "partition"
    allow: tuple[str, ...] = ()
    accelerator: str = "cpu"
    hardware: str | None = None
    metrics: str | None = None
    location: Path | None = None  # a file with the number of the edge that this node's link leads to
    patience: Mapping[str, float] = field(default_factory=dict)  # overrides the run's
    limits: Limits = field(default_factory=Limits)
    limit: Limit | None = None  # bounds its devices' privacy loss
    accountant: Accountant = "rdp"  # of its own ledger

    @property
    def hosts_devices(self) -> bool:
        """True where devices train here over the wire."""
        return self.role in ("device", "both")

    @property
    def hosts_edge(self) -> bool:
        """True where an edge serves here."""
        return self.role in ("edge", "both")

    @property
    def hosts_top(self) -> bool:
        """True where the server above an edge serves here."""
        return self.role == "top"

    @property
    def serves(self) -> bool:
        """True where others open sessions: at an edge, or at the server above one."""
        return self.hosts_edge or self.hosts_top

    def current_edge(self) -> int | None:
        """Read the edge that this node's link leads to from the file `location`; None where it names none."""
        if self.location is None:
            return None
        try:
            return int(self.location.read_text())
        except (OSError, ValueError):
            return None

    @staticmethod
    def read(config: Mapping[str, Any]) -> "NodeSettings":
        """Read and check a node's configuration; ConfigError names the key and the allowed values."""
        given = {name: value for name, value in config.items() if name not in _FLOWERS_OWN}
        for name, value in given.items():
            if name not in _KEYS:
                raise ConfigError(f"node configuration: there is no key '{name}'. There are: {', '.join(_KEYS)}")
            if not isinstance(value, _KEYS[name]) or (isinstance(value, bool) and _KEYS[name] is not bool):
                raise ConfigError(f"node configuration: {name}={value!r} is of the wrong type")
        role = one_of("role", given.get("role", "any"), _ROLES)
        settings = NodeSettings(
            role=role,
            devices=_ids(str(given.get("devices", ""))),
            edge=given.get("edge", 0),
            listen=given.get("listen", ""),
            steps_listen=_steps_listen(given),
            address=given.get("address", given.get("listen", "")),
            edge_addresses=_addresses(given.get("edge-addresses", "")),
            steps=one_of("steps", given.get("steps", "auto"), get_args(Steps)),
            key=_path(given, "key"),
            device_certificates=None
            if given.get("insecure")
            else Certificates(_path(given, "ca"), *_client_pair(given, role)),
            edge_certificates=None
            if given.get("insecure")
            else Certificates(_path(given, "client-ca"), _path(given, "cert"), _path(given, "cert-key")),
            state=_path(given, "state"),
            keep=Keep.read(given),
            data_path=given.get("data-path", os.environ.get("FSL_DATA_PATH")),
            data_name=given.get("data-name"),
            data_tokenizer=given.get("data-tokenizer", os.environ.get("FSL_DATA_TOKENIZER")),
            rows=one_of("rows", given.get("rows", "partition"), ("partition", "all")),
            allow=tuple(given["allow"].split(",")) if given.get("allow") else (),
            accelerator=given.get("accelerator", "cpu"),
            hardware=given.get("hardware"),
            metrics=given.get("metrics"),
            location=_path(given, "location"),
            patience={name: float(given[name]) for name in _PATIENCE if name in given},
            limits=Limits(max_message_bytes=given.get("max-message-bytes", Limits.max_message_bytes)),
            limit=_limit(given),
            accountant=one_of("accountant", given.get("accountant", "rdp"), ("rdp", "prv")),
        )
        replace(Patience(), **settings.patience)  # checks the numbers
        settings._refuse_ignored(given)
        settings._check()
        return settings

    def _refuse_ignored(self, given: Mapping[str, Any]) -> None:
        """Raise ConfigError for a key that a node of this role would ignore."""
        for keys, host, hosts in (
            (_OF_DEVICES, "devices", self.hosts_devices),
            (_OF_EDGES, "an edge, or the server above one", self.serves),
            (("steps",), "devices or an edge", self.hosts_devices or self.hosts_edge),
        ):
            for name in keys:
                if given.get(name) not in (None, "") and not hosts:
                    raise ConfigError(
                        f"node configuration: {name}={given[name]!r} is of a node that hosts {host}; this one has "
                        f"role={self.role!r}"
                    )
        if given.get("insecure") and (certificate := next((name for name in _CERTIFICATES if given.get(name)), None)):
            raise ConfigError(
                f"node configuration: insecure=true with {certificate}={given[certificate]!r}: nothing would be "
                "encrypted; leave out one of them"
            )

    def _need(self, **values: object) -> None:
        for name, value in values.items():
            if not value:
                raise ConfigError(f"node configuration: role={self.role!r} needs {name}")

    def _check(self) -> None:
        if self.hosts_devices:
            self._need(devices=self.devices, key=self.key, state=self.state)
            if self.rows == "all" and len(self.devices) > 1:
                raise ConfigError("node configuration: rows='all' is one device's own data; give devices one id")
        if self.serves:
            self._need(listen=self.listen, state=self.state)
            if self.edge < 0:
                raise ConfigError(f"node configuration: edge={self.edge}: an edge's id is a number from 0 on")
            if self.edge_certificates is not None:
                self.edge_certificates.edge_files()
        if self.limit is not None and not self.hosts_devices:
            raise ConfigError(
                f"node configuration: max-epsilon is of a node with devices; this one has role={self.role!r}"
            )
        if self.metrics is not None and (self.role == "any" or not _can_listen(self.metrics)):
            raise ConfigError(
                f"node configuration: metrics={self.metrics!r}: it is host:port, of a node with a role (role='device', "
                "'edge', 'both' or 'top')"
            )


def _limit(given: Mapping[str, Any]) -> Limit | None:
    if "max-epsilon" not in given:
        for name in ("max-epsilon-against", "max-delta"):
            if name in given:
                raise ConfigError(f"node configuration: {name} without max-epsilon limits nothing; give both")
        return None
    if not 0 < given["max-epsilon"] < math.inf:
        raise ConfigError(f"node configuration: max-epsilon={given['max-epsilon']}: it is a number above 0")
    if not 0 < given.get("max-delta", MAX_DELTA) < 1:
        raise ConfigError(
            f"node configuration: max-delta={given['max-delta']}: a probability between 0 and 1, well below 1/n"
        )
    return Limit(
        given["max-epsilon"],
        one_of("max-epsilon-against", given.get("max-epsilon-against", "model"), tuple(ADVERSARIES)),
        given.get("max-delta", MAX_DELTA),
    )


def _client_pair(given: Mapping[str, Any], role: str) -> tuple[Path | None, Path | None]:
    """Returns the certificate and key that devices show; on a node with an edge, cert and cert-key are the edge's."""
    return (None, None) if role == "both" else (_path(given, "cert"), _path(given, "cert-key"))


def _steps_listen(given: Mapping[str, Any]) -> str | None:
    """Returns where an edge takes lean streams: as told, or at the port after that of `listen`; None for "none"."""
    if (told := given.get("steps-listen")) is not None:
        if told != "none" and not _can_listen(told):
            raise ConfigError(f"node configuration: steps-listen={told!r}: give host:port, or none")
        return None if told == "none" else str(told)
    if not (listen := str(given.get("listen", ""))):
        return None
    host, _, port = listen.rpartition(":")
    if not _can_listen(listen) or port == "65535":
        raise ConfigError(
            f"node configuration: listen={listen!r}: give host:port; where steps-listen is not told, the port after it "
            "is for steps"
        )
    return f"{host}:{int(port) + 1 if int(port) else 0}"


def _can_listen(where: str) -> bool:
    """Returns whether it is host:port; port 0 is one that the system picks."""
    host, _, port = where.rpartition(":")
    return is_address(f"{host}:{1 if port == '0' else port}")


def _path(given: Mapping[str, Any], name: str) -> Path | None:
    return Path(given[name]).expanduser() if given.get(name) else None


def _ids(text: str) -> tuple[int, ...]:
    ids: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
            raise ConfigError(f"node configuration: devices={text!r}: give ids as in '3', '0,2' or '0-9'")
        first, last = int(match[1]), int(match[2] or match[1])
        ids.extend(range(first, last + 1))
    if len(set(ids)) < len(ids):
        raise ConfigError(f"node configuration: devices={text!r} names a device twice")
    return tuple(sorted(ids))


def _addresses(text: str) -> dict[int, str]:
    addresses = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        edge, _, address = part.partition("=")
        if not edge.isdecimal() or ":" not in address:
            raise ConfigError(f"node configuration: edge-addresses={text!r}: give it as in '0=host:port,1=host:port'")
        addresses[int(edge)] = address
    return addresses
