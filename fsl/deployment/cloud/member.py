"""A node as it describes itself to the cloud, and the check of what it says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from flwr.app import Message

from fsl.deployment.cloud.enrolled import fingerprint_of, names_of
from fsl.deployment.node.node_settings import Role
from fsl.errors import TrustError, WireError
from fsl.messages.identifiers import is_address, is_count, is_digest, is_hex, is_hex_key, is_owner
from fsl.messages.record_names import CONFIG, MEMBER
from fsl.messages.versions import check_versions
from fsl.quoting import one_line
from fsl.wire.tokens import registered_key


@dataclass(frozen=True)
class Member:
    """A node as it described itself."""

    node: int
    role: str
    samples: Mapping[int, int]  # n_k of each device that it hosts
    edge: int | None
    address: str
    key: bytes  # the devices' public key, DER
    label: str  # the name by which its operator registered it
    edge_key: str = ""  # hex; the public key of its edge's signatures to other edges
    registered: bytes = b""  # its SuperNode's public key, DER; empty where keys do not bind
    line: bool = False  # it opens the line that it was offered
    frozen: Mapping[str, str] = field(default_factory=dict)  # digests of its model's frozen parameters, by segment
    tested: int = 0  # rows of its test data
    people: str = ""  # a digest of whose rows it holds, where all parties must hold the same people's
    top: int | None = None  # the edge that it hosts the server above of

    @property
    def names(self) -> list[str]:
        """Names of the devices and servers that it hosts, as a table of members writes them."""
        return names_of(self.samples, self.edge, self.top)

    def __str__(self) -> str:
        """Name and key, for a log."""
        key = f" (key {fingerprint_of(self.registered)})" if self.registered else ""
        return f"node {self.label or self.node}{key}"


def introduced(node: int, reply: Message, registered: bytes, label: str, bind_keys: bool) -> Member:
    """Read what a node answers to the cloud's question; WireError for nonsense, TrustError for a key of another.

    `registered`: the public key by which Flower knows it, PEM; `label`: the name.
    """
    try:
        said = json.loads(str(reply.content.config_records[CONFIG][MEMBER]))
        check_versions(said.get("protocol"), said.get("version"), "this node", "the cloud")
        samples = {_device(device): _count(count) for device, count in said["samples"].items()}
        if wrong := _wrong(said):
            raise ValueError(f"{wrong}={said[wrong]!r}")
        key = bytes.fromhex(said["key"])
        role, edge_key, label = said["role"], said["edge_key"], one_line(label, 100)
        beside = {"line": said["line"], "frozen": dict(said.get("frozen", {})), "top": said.get("top")}
        beside |= {"tested": said.get("tested", 0), "people": said.get("people", "")}
        member = Member(node, role, samples, said["edge"], said["address"], key, label, edge_key, **beside)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"it does not say what it hosts ({one_line(str(error), 200)})") from None
    if few := [device for device, count in samples.items() if count < 1]:
        raise WireError(f"it says that device {few[0]} holds {samples[few[0]]} samples; one is the least")
    if member.names and bind_keys:
        if not registered:
            raise TrustError("the SuperLink knows no key of it (--enable-supernode-auth, flwr supernode register)")
        own = registered_key(registered)
        if samples and own != member.key:
            raise TrustError("its devices' key is not the one that its SuperNode is registered by")
        member = replace(member, registered=own)
    return member


def refuse_both(member: Member, other: Member) -> None:
    """Raise TrustError where two nodes answer for one number."""
    for name in member.names:
        if name in other.names:
            kind, _, number = name.partition("-")
            what = "the server above edge" if kind == "top" else kind
            raise TrustError(
                f"{what} {number} is hosted already by {other}; this is {member}; a table of members says whose it is "
                "(deployment.members)"
            )


def _device(text: Any) -> int:
    if not is_owner(f"device-{text}") or not is_count(device := int(text)):
        raise ValueError(f"device {text!r}")
    return device


def _count(value: Any) -> int:
    if not is_count(value):
        raise ValueError(f"samples={value!r}")
    return int(value)


def _wrong(said: Mapping[str, Any]) -> str | None:
    """Returns the invalid field of a node's answer; None where all are valid."""
    top = said.get("top")
    fine = {
        "role": said["role"] in get_args(Role),
        "edge": said["edge"] is None or is_count(said["edge"]),
        "top": top is None or (is_count(top) and said["edge"] is None),
        "address": said["address"] == "" if said["edge"] is top is None else is_address(said["address"]),
        "key": is_hex(said["key"]),
        "line": isinstance(said["line"], bool),
        "people": said.get("people", "") == "" or is_digest(said["people"]),
        "tested": is_count(said.get("tested", 0)),
        "frozen": all(is_digest(digest) for digest in dict(said.get("frozen", {})).values()),
        "edge_key": said["edge_key"] == "" if said["edge"] is None else is_hex_key(said["edge_key"]),
    }
    return next((name for name, holds in fine.items() if not holds), None)
