"""What a cloud tells a node so that it can open a line: where, by which certificate, and a token of its own."""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from fsl.errors import WireError
from fsl.messages.identifiers import is_address, is_hex
from fsl.messages.strict_json import from_json, to_json

SERVER_NAME = "fsl-line"  # the name in a line's certificate, whatever address leads to it
_TOKEN_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class LineOffer:
    """An offer to one node.

    `address`: host:port, or :port of the host where the node reaches its SuperLink. `certificate`: the run's own, PEM,
    since Python's gRPC cannot pin a fingerprint. `token`: hex; only this node knows it.
    """

    address: Annotated[str, msgspec.Meta(max_length=300)]
    certificate: Annotated[str, msgspec.Meta(max_length=20_000)]
    token: Annotated[str, msgspec.Meta(max_length=2 * _TOKEN_BYTES)]

    def to_json(self) -> str:
        """Returns the offer as JSON."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "LineOffer":
        """Read what `to_json` wrote; WireError for anything else."""
        try:
            offer = from_json(text, LineOffer)
        except ValueError as error:
            raise WireError(f"this is no offer of a line ({error})") from None
        address = f"host{offer.address}" if offer.address.startswith(":") else offer.address
        if not is_address(address) or not is_hex(offer.token) or len(offer.token) != 2 * _TOKEN_BYTES:
            raise WireError("an offer of a line names no address or no token")
        return offer
