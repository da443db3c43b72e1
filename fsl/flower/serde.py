"""Flower's records as bytes; beside `internals.py` the other file that touches what Flower keeps to itself."""

from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto


def record_bytes(content: RecordDict) -> bytes:
    """Serialize a message's content."""
    return recorddict_to_proto(content).SerializeToString()


class SharedRecords:
    """Serializes contents that share records of arrays, which are by far the largest, each of them once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[ArrayRecord, bytes]] = {}

    def bytes_of(self, content: RecordDict) -> bytes:
        """As `record_bytes`: the items of a protobuf message follow each other, in any order."""
        shared = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
        for name, record in shared.items():
            if (name, id(record)) not in self._known:
                self._known[name, id(record)] = record, record_bytes(RecordDict({name: record}))
        rest = RecordDict({name: record for name, record in content.items() if name not in shared})
        return b"".join([record_bytes(rest), *(self._known[name, id(record)][1] for name, record in shared.items())])


def record_from_bytes(data: bytes) -> RecordDict:
    """Read what `record_bytes` wrote."""
    return recorddict_from_proto(Proto.FromString(data))
