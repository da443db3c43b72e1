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
    __slots__ = ("codec", "tensors", "structure")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STRUCTURE_FIELD_NUMBER: _ClassVar[int]
    codec: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    structure: str
    def __init__(self, codec: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., structure: _Optional[str] = ...) -> None: ...

class Upload(_message.Message):
    __slots__ = ("device", "round", "step", "smashed", "targets", "leaving", "factors")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SMASHED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    device: int
    round: int
    step: int
    smashed: Payload
    targets: Payload
    leaving: int
    factors: Payload
    def __init__(self, device: _Optional[int] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., smashed: _Optional[_Union[Payload, _Mapping]] = ..., targets: _Optional[_Union[Payload, _Mapping]] = ..., leaving: _Optional[int] = ..., factors: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("device", "round", "step", "gradient", "served", "norms", "told")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    TOLD_FIELD_NUMBER: _ClassVar[int]
    device: int
    round: int
    step: int
    gradient: Payload
    served: int
    norms: Payload
    told: Payload
    def __init__(self, device: _Optional[int] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., gradient: _Optional[_Union[Payload, _Mapping]] = ..., served: _Optional[int] = ..., norms: _Optional[_Union[Payload, _Mapping]] = ..., told: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("token", "public_key", "up", "down", "served", "secret", "left", "protocol", "version", "steps")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    public_key: bytes
    up: str
    down: str
    served: int
    secret: bytes
    left: int
    protocol: int
    version: str
    steps: bool
    def __init__(self, token: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., up: _Optional[str] = ..., down: _Optional[str] = ..., served: _Optional[int] = ..., secret: _Optional[bytes] = ..., left: _Optional[int] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ..., steps: _Optional[bool] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce", "protocol", "version")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    protocol: int
    version: str
    def __init__(self, nonce: _Optional[bytes] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("signature",)
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    signature: bytes
    def __init__(self, signature: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("secret", "received", "queue", "max_bytes", "ticket", "port", "machine", "local")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    received: int
    queue: int
    max_bytes: int
    ticket: bytes
    port: int
    machine: bytes
    local: str
    def __init__(self, secret: _Optional[bytes] = ..., received: _Optional[int] = ..., queue: _Optional[int] = ..., max_bytes: _Optional[int] = ..., ticket: _Optional[bytes] = ..., port: _Optional[int] = ..., machine: _Optional[bytes] = ..., local: _Optional[str] = ...) -> None: ...

class Stay(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("relay", "factors", "update")
    RELAY_FIELD_NUMBER: _ClassVar[int]
    FACTORS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    relay: bytes
    factors: Payload
    update: float
    def __init__(self, relay: _Optional[bytes] = ..., factors: _Optional[_Union[Payload, _Mapping]] = ..., update: _Optional[float] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("update",)
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    update: float
    def __init__(self, update: _Optional[float] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason", "to")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    reason: str
    to: int
    def __init__(self, reason: _Optional[str] = ..., to: _Optional[int] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("edge",)
    EDGE_FIELD_NUMBER: _ClassVar[int]
    edge: int
    def __init__(self, edge: _Optional[int] = ...) -> None: ...

class ToEdge(_message.Message):
    __slots__ = ("open", "proof", "upload", "close", "leave", "stay")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    STAY_FIELD_NUMBER: _ClassVar[int]
    open: Open
    proof: Proof
    upload: Upload
    close: Close
    leave: Leave
    stay: Stay
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., upload: _Optional[_Union[Upload, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., stay: _Optional[_Union[Stay, _Mapping]] = ...) -> None: ...

class ToDevice(_message.Message):
    __slots__ = ("challenge", "opened", "begin", "reply", "served", "closed", "moved")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    challenge: Challenge
    opened: Opened
    begin: Begin
    reply: Reply
    served: Served
    closed: Closed
    moved: Moved
    def __init__(self, challenge: _Optional[_Union[Challenge, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., served: _Optional[_Union[Served, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ...) -> None: ...

class Hand(_message.Message):
    __slots__ = ("device", "token", "moved_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    MOVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: int
    token: bytes
    moved_bytes: int
    def __init__(self, device: _Optional[int] = ..., token: _Optional[bytes] = ..., moved_bytes: _Optional[int] = ...) -> None: ...

class Ask(_message.Message):
    __slots__ = ("device", "token")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    device: int
    token: bytes
    def __init__(self, device: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class Watch(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: int
    def __init__(self, known: _Optional[int] = ...) -> None: ...

class Keep(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: int
    def __init__(self, device: _Optional[int] = ...) -> None: ...

class Places(_message.Message):
    __slots__ = ("version", "here", "settled", "over")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    version: int
    here: _containers.RepeatedScalarFieldContainer[int]
    settled: _containers.RepeatedScalarFieldContainer[int]
    over: bool
    def __init__(self, version: _Optional[int] = ..., here: _Optional[_Iterable[int]] = ..., settled: _Optional[_Iterable[int]] = ..., over: _Optional[bool] = ...) -> None: ...

class ToPeer(_message.Message):
    __slots__ = ("run", "round", "fence", "source", "destination", "protocol", "version", "hand", "ask", "watch", "keep", "places", "taken", "copy")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    DESTINATION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HAND_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    fence: int
    source: int
    destination: int
    protocol: int
    version: str
    hand: Hand
    ask: Ask
    watch: Watch
    keep: Keep
    places: Places
    taken: Hand
    copy: Hand
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., fence: _Optional[int] = ..., source: _Optional[int] = ..., destination: _Optional[int] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ..., hand: _Optional[_Union[Hand, _Mapping]] = ..., ask: _Optional[_Union[Ask, _Mapping]] = ..., watch: _Optional[_Union[Watch, _Mapping]] = ..., keep: _Optional[_Union[Keep, _Mapping]] = ..., places: _Optional[_Union[Places, _Mapping]] = ..., taken: _Optional[_Union[Hand, _Mapping]] = ..., copy: _Optional[_Union[Hand, _Mapping]] = ...) -> None: ...

class SignedPeer(_message.Message):
    __slots__ = ("message", "signature")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    signature: bytes
    def __init__(self, message: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("run", "round", "device", "edges", "steps", "samples", "fence", "fingerprint", "top")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    device: int
    edges: _containers.RepeatedScalarFieldContainer[int]
    steps: int
    samples: int
    fence: int
    fingerprint: bytes
    top: bool
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., device: _Optional[int] = ..., edges: _Optional[_Iterable[int]] = ..., steps: _Optional[int] = ..., samples: _Optional[int] = ..., fence: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., top: _Optional[bool] = ...) -> None: ...

class SignedToken(_message.Message):
    __slots__ = ("token", "signature")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    signature: bytes
    def __init__(self, token: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("token", "node", "process", "protocol", "version")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    node: int
    process: str
    protocol: int
    version: str
    def __init__(self, token: _Optional[bytes] = ..., node: _Optional[int] = ..., process: _Optional[str] = ..., protocol: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("id", "kind")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: str
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("id", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    error: str
    def __init__(self, id: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class Over(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ToNode(_message.Message):
    __slots__ = ("welcome", "work", "taken", "over")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    work: Work
    taken: Taken
    over: Over
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., work: _Optional[_Union[Work, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ..., over: _Optional[_Union[Over, _Mapping]] = ...) -> None: ...

class ToCloud(_message.Message):
    __slots__ = ("hello", "answer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    answer: Answer
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...
