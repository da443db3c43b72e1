"""Seals fronts that pass from device to device through an edge, so that the edge cannot read them.

Gupta & Raskar 2018 (section 3.2) call it the centralised mode: weights go from one data holder to the next by way of
the server, encrypted.
"""

import secrets
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from safetensors.torch import load, save

from fsl.errors import CheckpointError, WireError
from fsl.segments.states import Layout, State

_NONCE = 12


def new_key() -> bytes:
    """Draws the key of one round."""
    return ChaCha20Poly1305.generate_key()


class Relay:
    """Seals and unseals the segments that are relayed in one round at one edge."""

    def __init__(self, key: bytes, place: str, layouts: Mapping[str, Layout]):
        self._cipher = ChaCha20Poly1305(key)
        self._place = place.encode()  # run, round and edge: `unseal` refuses what comes from elsewhere
        self._layouts = layouts

    def seal(self, states: Mapping[str, State]) -> bytes:
        """Encrypt segments' states into bytes that only holders of the key can read."""
        nonce = secrets.token_bytes(_NONCE)
        tensors = {
            f"{segment}.{field.name}": view.contiguous()
            for segment, state in states.items()
            for field, view in self._layouts[segment].views(state)
        }
        return nonce + self._cipher.encrypt(nonce, save(tensors), self._place)

    def unseal(self, data: bytes) -> dict[str, State]:
        """Decrypt what `seal` returned; WireError for anything else."""
        try:
            tensors = load(self._cipher.decrypt(data[:_NONCE], data[_NONCE:], self._place))
            return {
                segment: layout.pack({f.name: tensors[f"{segment}.{f.name}"] for f in layout.fields})
                for segment, layout in self._layouts.items()
            }
        except (InvalidTag, ValueError, KeyError, CheckpointError) as error:
            raise WireError(f"the front that was passed on cannot be read ({type(error).__name__})") from None
