from collections.abc import Iterable as _Iterable
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from google.protobuf.internal import containers as _containers

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("data", "dtype", "name", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(
        self,
        name: str | None = ...,
        dtype: str | None = ...,
        shape: _Iterable[int] | None = ...,
        data: bytes | None = ...,
    ) -> None: ...

class Payload(_message.Message):
    __slots__ = ("codec", "tensors")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    codec: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, codec: str | None = ..., tensors: _Iterable[Tensor | _Mapping] | None = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("device", "round", "smashed", "step", "targets")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SMASHED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    device: int
    round: int
    step: int
    smashed: Payload
    targets: Payload
    def __init__(
        self,
        device: int | None = ...,
        round: int | None = ...,
        step: int | None = ...,
        smashed: Payload | _Mapping | None = ...,
        targets: Payload | _Mapping | None = ...,
    ) -> None: ...

class Reply(_message.Message):
    __slots__ = ("device", "gradient", "round", "step")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    device: int
    round: int
    step: int
    gradient: Payload
    def __init__(
        self,
        device: int | None = ...,
        round: int | None = ...,
        step: int | None = ...,
        gradient: Payload | _Mapping | None = ...,
    ) -> None: ...
