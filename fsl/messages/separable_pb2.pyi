from fsl.messages import messages_pb2 as _messages_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GroupGreeting(_message.Message):
    __slots__ = ("protocol", "version", "model", "device", "devices", "token")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    model: str
    device: int
    devices: int
    token: bytes
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., model: _Optional[str] = ..., device: _Optional[int] = ..., devices: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class GroupMaps(_message.Message):
    __slots__ = ("request", "stage", "values")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    request: int
    stage: int
    values: _messages_pb2.Payload
    def __init__(self, request: _Optional[int] = ..., stage: _Optional[int] = ..., values: _Optional[_Union[_messages_pb2.Payload, _Mapping]] = ...) -> None: ...

class GroupFault(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ToGroup(_message.Message):
    __slots__ = ("greeting", "maps", "fault")
    GREETING_FIELD_NUMBER: _ClassVar[int]
    MAPS_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    greeting: GroupGreeting
    maps: GroupMaps
    fault: GroupFault
    def __init__(self, greeting: _Optional[_Union[GroupGreeting, _Mapping]] = ..., maps: _Optional[_Union[GroupMaps, _Mapping]] = ..., fault: _Optional[_Union[GroupFault, _Mapping]] = ...) -> None: ...
