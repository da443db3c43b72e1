"""Puts arrays that several nodes get into Ray's store once: one copy a machine, not one in each node's message."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fsl.flower.internals import with_content
from fsl.flower.ray_session import ray


@dataclass(frozen=True)
class Envelope:
    """A message without the arrays that others get too. `places`: record, key and number of each one of those."""

    message: Message
    places: tuple[tuple[str, str, int], ...]

    def opened(self, shared: Sequence[Array]) -> Message:
        """Returns the whole message; its records keep their order of keys."""
        content = self.message.content
        for record in list(content.array_records):
            own = content.array_records[record]
            lent = {key: shared[number] for name, key, number in self.places if name == record}
            content[record] = ArrayRecord({key: lent.get(key, array) for key, array in own.items()})
        return self.message


def enveloped(messages: Sequence[Message]) -> tuple[list[Envelope], Any]:
    """Returns the messages in envelopes, and the reference to what several of them have in common; None for nothing."""
    counts = Counter(id(array) for message in messages for _, _, array in _arrays(message))
    numbers: dict[int, int] = {}
    shared: list[Array] = []
    envelopes = []
    for message in messages:
        places = []
        for record, key, array in _arrays(message):
            if counts[id(array)] < 2:
                continue
            if id(array) not in numbers:
                numbers[id(array)] = len(shared)
                shared.append(array)
            places.append((record, key, numbers[id(array)]))
        envelopes.append(Envelope(_without(message, places), tuple(places)))
    return envelopes, ray.put(shared) if shared else None


def _arrays(message: Message) -> list[tuple[str, str, Array]]:
    records = message.content.array_records
    return [(name, key, array) for name, record in records.items() for key, array in record.items()]


_EMPTY = Array(dtype="uint8", shape=(0,), stype="numpy.ndarray", data=b"")


def _without(message: Message, places: Sequence[tuple[str, str, int]]) -> Message:
    left = {(record, key) for record, key, _ in places}
    content = RecordDict(
        {
            name: ArrayRecord({key: _EMPTY if (name, key) in left else array for key, array in record.items()})
            if isinstance(record, ArrayRecord)
            else record
            for name, record in message.content.items()
        }
    )
    return with_content(message, content)
