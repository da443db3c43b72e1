from fsl.messages import messages_pb2 as _messages_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Failing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UNKNOWN_FAILING: _ClassVar[Failing]
    EXPIRED: _ClassVar[Failing]
    OVERLOADED: _ClassVar[Failing]
    MISFIT: _ClassVar[Failing]
    FAILED: _ClassVar[Failing]
UNKNOWN_FAILING: Failing
EXPIRED: Failing
OVERLOADED: Failing
MISFIT: Failing
FAILED: Failing

class Knock(_message.Message):
    __slots__ = ("token", "protocol", "version", "model", "points", "codecs")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    protocol: int
    version: str
    model: str
    points: _containers.RepeatedScalarFieldContainer[str]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, token: _Optional[bytes] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ..., model: _Optional[str] = ..., points: _Optional[_Iterable[str]] = ..., codecs: _Optional[_Iterable[str]] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("protocol", "version", "points", "max_bytes", "max_rows", "unanswered", "ticket", "port")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    points: _containers.RepeatedScalarFieldContainer[str]
    max_bytes: int
    max_rows: int
    unanswered: int
    ticket: bytes
    port: int
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., points: _Optional[_Iterable[str]] = ..., max_bytes: _Optional[int] = ..., max_rows: _Optional[int] = ..., unanswered: _Optional[int] = ..., ticket: _Optional[bytes] = ..., port: _Optional[int] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("id", "point", "codec", "rows", "seconds", "values")
    ID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    id: int
    point: int
    codec: int
    rows: int
    seconds: float
    values: _messages_pb2.Payload
    def __init__(self, id: _Optional[int] = ..., point: _Optional[int] = ..., codec: _Optional[int] = ..., rows: _Optional[int] = ..., seconds: _Optional[float] = ..., values: _Optional[_Union[_messages_pb2.Payload, _Mapping]] = ...) -> None: ...

class Answered(_message.Message):
    __slots__ = ("id", "queue_seconds", "compute_seconds", "batch_rows", "outputs")
    ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    id: int
    queue_seconds: float
    compute_seconds: float
    batch_rows: int
    outputs: _messages_pb2.Payload
    def __init__(self, id: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., batch_rows: _Optional[int] = ..., outputs: _Optional[_Union[_messages_pb2.Payload, _Mapping]] = ...) -> None: ...

class Unanswered(_message.Message):
    __slots__ = ("id", "failing", "reason", "queue_seconds", "retry_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    FAILING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: int
    failing: Failing
    reason: str
    queue_seconds: float
    retry_seconds: float
    def __init__(self, id: _Optional[int] = ..., failing: _Optional[_Union[Failing, str]] = ..., reason: _Optional[str] = ..., queue_seconds: _Optional[float] = ..., retry_seconds: _Optional[float] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Echoed(_message.Message):
    __slots__ = ("number", "queue_seconds", "load")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    number: int
    queue_seconds: float
    load: float
    def __init__(self, number: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., load: _Optional[float] = ...) -> None: ...

class ToServing(_message.Message):
    __slots__ = ("knock", "question", "probe")
    KNOCK_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    knock: Knock
    question: Question
    probe: Probe
    def __init__(self, knock: _Optional[_Union[Knock, _Mapping]] = ..., question: _Optional[_Union[Question, _Mapping]] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ...) -> None: ...

class FromServing(_message.Message):
    __slots__ = ("loaded", "answered", "unanswered", "echoed")
    LOADED_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    ECHOED_FIELD_NUMBER: _ClassVar[int]
    loaded: Loaded
    answered: Answered
    unanswered: Unanswered
    echoed: Echoed
    def __init__(self, loaded: _Optional[_Union[Loaded, _Mapping]] = ..., answered: _Optional[_Union[Answered, _Mapping]] = ..., unanswered: _Optional[_Union[Unanswered, _Mapping]] = ..., echoed: _Optional[_Union[Echoed, _Mapping]] = ...) -> None: ...

class ServingToken(_message.Message):
    __slots__ = ("name", "expires")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    name: str
    expires: float
    def __init__(self, name: _Optional[str] = ..., expires: _Optional[float] = ...) -> None: ...

class SignedServingToken(_message.Message):
    __slots__ = ("token", "signature")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    signature: bytes
    def __init__(self, token: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AskedProfile(_message.Message):
    __slots__ = ("token", "protocol", "version", "model", "points", "batch", "repetitions", "warm_up", "checks")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    REPETITIONS_FIELD_NUMBER: _ClassVar[int]
    WARM_UP_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    protocol: int
    version: str
    model: str
    points: _containers.RepeatedScalarFieldContainer[str]
    batch: int
    repetitions: int
    warm_up: int
    checks: int
    def __init__(self, token: _Optional[bytes] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ..., model: _Optional[str] = ..., points: _Optional[_Iterable[str]] = ..., batch: _Optional[int] = ..., repetitions: _Optional[int] = ..., warm_up: _Optional[int] = ..., checks: _Optional[int] = ...) -> None: ...

class ToldProfile(_message.Message):
    __slots__ = ("protocol", "version", "profile")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    profile: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., profile: _Optional[str] = ...) -> None: ...
