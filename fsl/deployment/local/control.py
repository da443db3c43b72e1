"""Asks a SuperLink what `flwr supernode list`, `flwr supernode register` and `flwr list` ask, in this process.

A command of `flwr` takes two seconds to start, and a federation is asked some twenty times until a run has ended.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClient

from fsl.errors import RunError
from fsl.quoting import one_line

Client = TypeVar("Client", bound=ProtobufClient)


class Control:
    """The control of the SuperLink at this address (host:port), whose certificate this CA has signed.

    Every method raises RunError in one line where the SuperLink does not answer within half a minute, or refuses.
    """

    def __init__(self, address: str, ca: Path):
        self._address = address
        self._ca = ca

    def register(self, public_key: Path, name: str) -> str:
        """Register a SuperNode by its public key's file; returns the SuperLink's id for it."""
        key = load_ssh_public_key(public_key.read_bytes())
        assert isinstance(key, EllipticCurvePublicKey)  # fsl-certs wrote it
        request = RegisterNodeRequest(public_key=public_key_to_bytes(key), name=name)
        with self._asking(f"register {name}"), self._client(ControlHttpClient) as client:
            return str(client.RegisterNode(request).node_id)

    def online(self) -> set[str]:
        """Returns the ids of the SuperNodes that the SuperLink counts as online."""
        with self._asking("list its nodes"), self._client(ControlHttpClient) as client:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
        return {str(node.node_id) for node in nodes if node.status == "online"}

    def status(self, run: str) -> tuple[str, str]:
        """Returns a run's status as `flwr list` has it, such as `finished:completed`, and its details."""
        with self._asking(f"tell of run {run}"), self._client(ControlHttpClient) as client:
            found = client.ListRuns(ListRunsRequest(run_id=int(run))).run_dict.get(int(run))
        if found is None:
            raise RunError(f"the SuperLink at {self._address} knows no run {run}")
        return ":".join(filter(None, (found.status.status, found.status.sub_status))), found.status.details

    def _client(self, kind: type[Client]) -> Client:
        versions = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        return kind.from_server_address(self._address, False, self._ca.read_bytes(), [versions])

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            said = str(error)
            if isinstance(error, httpx.HTTPStatusError) and (known := FlowerError.from_json(error.response.text)):
                said = " ".join(filter(None, (known.message, known.public_details)))
            raise RunError(f"the SuperLink at {self._address} does not {what}: {one_line(said, 500)}") from None
