"""Flower's records as bytes; beside `internals.py` the other file that touches what Flower keeps to itself."""

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto


def record_bytes(content: RecordDict) -> bytes:
    """Serialize a message's content."""
    return recorddict_to_proto(content).SerializeToString()


def record_from_bytes(data: bytes) -> RecordDict:
    """Read what `record_bytes` wrote."""
    return recorddict_from_proto(Proto.FromString(data))
