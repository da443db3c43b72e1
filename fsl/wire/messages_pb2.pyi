from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("codec", "tensors")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    codec: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, codec: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("device", "round", "step", "smashed", "targets")
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
    def __init__(self, device: _Optional[int] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., smashed: _Optional[_Union[Payload, _Mapping]] = ..., targets: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("device", "round", "step", "gradient", "served")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    device: int
    round: int
    step: int
    gradient: Payload
    served: int
    def __init__(self, device: _Optional[int] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., gradient: _Optional[_Union[Payload, _Mapping]] = ..., served: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("token", "public_key", "up", "down", "served", "secret")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    public_key: bytes
    up: str
    down: str
    served: int
    secret: bytes
    def __init__(self, token: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., up: _Optional[str] = ..., down: _Optional[str] = ..., served: _Optional[int] = ..., secret: _Optional[bytes] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce",)
    NONCE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    def __init__(self, nonce: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("secret", "received", "queue", "max_bytes")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    received: int
    queue: int
    max_bytes: int
    def __init__(self, secret: _Optional[bytes] = ..., received: _Optional[int] = ..., queue: _Optional[int] = ..., max_bytes: _Optional[int] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("relay",)
    RELAY_FIELD_NUMBER: _ClassVar[int]
    relay: bytes
    def __init__(self, relay: _Optional[bytes] = ...) -> None: ...

class Served(_message.Message):
    __slots__ = ("served",)
    SERVED_FIELD_NUMBER: _ClassVar[int]
    served: int
    def __init__(self, served: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("relay",)
    RELAY_FIELD_NUMBER: _ClassVar[int]
    relay: bytes
    def __init__(self, relay: _Optional[bytes] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ToEdge(_message.Message):
    __slots__ = ("open", "proof", "upload", "close", "leave")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    proof: Proof
    upload: Upload
    close: Close
    leave: Leave
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., upload: _Optional[_Union[Upload, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class ToDevice(_message.Message):
    __slots__ = ("challenge", "opened", "begin", "reply", "served", "closed")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    opened: Opened
    begin: Begin
    reply: Reply
    served: Served
    closed: Closed
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., served: _Optional[_Union[Served, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("run", "round", "device", "edges", "steps", "samples", "fence", "fingerprint")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    device: int
    edges: _containers.RepeatedScalarFieldContainer[int]
    steps: int
    samples: int
    fence: int
    fingerprint: bytes
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., device: _Optional[int] = ..., edges: _Optional[_Iterable[int]] = ..., steps: _Optional[int] = ..., samples: _Optional[int] = ..., fence: _Optional[int] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class SignedToken(_message.Message):
    __slots__ = ("token", "signature")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    signature: bytes
    def __init__(self, token: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
