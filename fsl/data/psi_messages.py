"""Private set intersection in two messages, between parties on machines of their own (package openmined_psi)."""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from fsl.errors import ConfigError, DataError

_MARK = b"fsl-psi1"  # before a message; then, of each part, its length in 8 bytes and itself
_DIGEST = 32  # bytes of a digest: of the question, which begins its key and its answers, then in the key of its ids


def question(ids: Sequence[str]) -> tuple[bytes, bytes]:
    """Returns a party's question, which tells others how many ids it has, and the key that reads their answers."""
    client = _openmined().client.CreateWithNewKey(True)
    asked = _packed(client.CreateRequest(list(ids)).SerializeToString())
    return asked, sha256(asked).digest() + _digest(ids) + bytes(client.GetPrivateKeyBytes())


def answer(ids: Sequence[str], asked: bytes) -> bytes:
    """Returns another party's answer, by a key of its own that nobody keeps; DataError for no question."""
    psi = _openmined()
    request = _parsed(psi.Request(), *_parts(asked, 1, "question"))
    server = psi.server.CreateWithNewKey(True)
    # Raw: exact. Filters are smaller, and take ids for common that are not.
    setup = server.CreateSetupMessage(0.0, len(request.encrypted_elements), list(ids), psi.DataStructure.RAW)
    try:
        response = server.ProcessRequest(request).SerializeToString()
        return _packed(sha256(asked).digest(), setup.SerializeToString(), response)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"this question cannot be answered ({error}); ask for it once more") from None


def common(ids: Sequence[str], key: bytes, answered: bytes) -> list[str]:
    """Returns which of the ids that a question was about the other party has; DataError for no answer to it.

    An answer tells places in the question: by them, other ids or another order would name people whom the other party
    does not know.
    """
    psi = _openmined()
    about, setup, response = _parts(answered, 3, "answer")
    if about != key[:_DIGEST]:
        raise DataError(
            "this answer is to another question than the one of this key; give the two that belong together"
        )
    if key[_DIGEST : 2 * _DIGEST] != _digest(ids):
        raise DataError("the question was about other ids, or in another order; give the file that it was made from")
    try:
        client = psi.client.CreateFromKey(key[2 * _DIGEST :], True)
        places = client.GetIntersection(_parsed(psi.ServerSetup(), setup), _parsed(psi.Response(), response))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"this answer cannot be read with this key ({error}); have it sent again") from None
    if places and max(places) >= len(ids):
        raise DataError("this answer is about more people than the question; have it sent again")
    return [ids[place] for place in places]


def _digest(ids: Sequence[str]) -> bytes:
    return sha256(json.dumps(list(ids)).encode()).digest()


def _packed(*parts: bytes) -> bytes:
    return _MARK + b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _parts(data: bytes, count: int, what: str) -> list[bytes]:
    found, rest = list[bytes](), data[len(_MARK) :]
    while data[: len(_MARK)] == _MARK and len(rest) >= 8 + (size := int.from_bytes(rest[:8], "little")) > 8:
        found.append(rest[8 : 8 + size])
        rest = rest[8 + size :]
    if len(found) != count or rest:
        raise DataError(f"this is no {what} of fsl-align, or not all of it; have it sent again")
    return found


def _parsed(message: Any, data: bytes) -> Any:
    try:
        message.ParseFromString(data)
    except Exception as error:  # protobuf has an error of its own in each of its implementations
        raise DataError(f"this is no message of fsl-align ({error}); have it sent again") from None
    return message


def _openmined() -> Any:
    try:
        import private_set_intersection.python as psi
    except ImportError as error:
        raise ConfigError(
            f"alignment=psi: the package openmined_psi is not there ({error}); pip install 'fsl-flower[psi]', or use "
            "alignment=clear"
        ) from None
    return psi
