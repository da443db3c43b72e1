"""What the computing thread hears of sessions."""

from dataclasses import dataclass
from typing import Any

from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import Arrived
from fsl.wire.steps.mailbox import Mailbox


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A device has a session."""

    device: int


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A device sent a step: the message's head, and the tensors' bytes, not yet decoded, or where they arrived."""

    device: int
    upload: pb.Upload
    data: memoryview | Arrived


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A device has uploaded its last step: its closing message, and the tensors' bytes behind it."""

    device: int
    close: pb.Close
    data: memoryview


@dataclass(frozen=True, kw_only=True)
class Gone:
    """A device will not go on here; `reason` says why, `to` is the edge where it begins its round again, if any."""

    device: int
    reason: str
    to: int | None = None


Event = Joined | Uploaded | Finished | Gone
Inbox = Mailbox[Any]  # of events, also those of `edge_events`
