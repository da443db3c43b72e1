"""An edge that serves a trained split model: it computes the rest from what devices send."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.importing.import_paths import ALLOWED
from fsl.inference.serving.batching import Batching
from fsl.inference.serving.desk import Desk
from fsl.inference.serving.edge_counts import EdgeCounts, EdgeFigures
from fsl.inference.serving.greeting import Greeting
from fsl.inference.serving.loopback import port_behind, refuse_open
from fsl.inference.serving.question_admission import QuestionAdmission
from fsl.inference.serving.serving_door import ServingDoor
from fsl.inference.split_points import SplitPoints
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Certificates, Limits

_CODED = 4  # bytes of a frame, for each byte of what crosses: a codec may be wider than that
_ROOM = 64 << 10  # bytes of a record beside its tensors
_UNANSWERED = 256  # questions of a stream
_MEMORY = 4  # frames of the largest size that may wait in all


class InferenceEdge:
    """Answers devices' questions for a trained model at each of its points, until it is closed; a context manager.

    `listen`: host:port, where port 0 is any free one. `lean`: host:port of the streams that carry questions once a
    device was let in, quicker than gRPC; "auto" is the port behind, and None has gRPC carry them. `certificates`: its
    TLS, None for none, and `token_keys`: the public keys of operators whose tokens let devices in, None for everybody;
    both may be None only on a loopback address, to try it. `batching` joins questions. `queue`: rows that may wait, and
    that a question may have; more are refused at once, with a hint when to come back. `allowed`: packages that codecs
    may be from. `admission` decides on each question, beside these (None: all may ask), as a `FleetController` does.

    The model computes on one thread of its own, with torch's number of threads. ConfigError where it cannot listen.
    """

    @checks_types(leave=("admission",))
    def __init__(
        self,
        points: SplitPoints,
        *,
        listen: str = "127.0.0.1:0",
        lean: str | None = "auto",
        certificates: Certificates | None = None,
        token_keys: Sequence[Ed25519PublicKey] | None = None,
        batching: Batching | None = None,
        queue: int = 1024,
        limits: Limits | None = None,
        allowed: Iterable[str] = ALLOWED,
        admission: QuestionAdmission | None = None,
        counts: EdgeCounts | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        if queue < 1:
            raise ConfigError(f"queue={queue}: at least 1 row must be able to wait")
        refuse_open("listen", listen, certificates, token_keys)
        lean = port_behind(listen) if lean == "auto" else lean
        if lean is not None:
            refuse_open("lean", lean, certificates, token_keys)
        limits = limits or Limits()
        self._counts = counts or EdgeCounts()
        greeting = Greeting(points, token_keys, allowed, queue, _UNANSWERED, wall, admission)
        most = min(limits.max_message_bytes, _ROOM + _CODED * greeting.bytes_of(queue))
        self._thread = NetworkThread("edge-serving")
        door = ServingDoor(self._thread, limits, most, self._counts, clock, wall)
        self._door = door
        self._desk = Desk(
            points, batching or Batching(), queue, _MEMORY * limits.max_message_bytes, door, self._counts, clock
        )
        try:
            self.port = self._thread.run(door.start(listen, lean, certificates, greeting, self._desk))
        except BaseException:
            self._thread.close()
            raise
        self.address = f"{listen.rpartition(':')[0]}:{self.port}"
        self._model = threading.Thread(target=self._desk.run, name="edge-model", daemon=True)
        self._model.start()

    @property
    def figures(self) -> EdgeFigures:
        """What it has counted so far."""
        return self._counts.figures

    def close(self) -> None:
        """End it: streams first, so that devices ask elsewhere, then the model's thread after its present batch."""
        if not self._model.is_alive():
            return
        self._thread.run(self._door.stop())
        self._desk.close()
        self._model.join()
        self._thread.close()

    def __enter__(self) -> "InferenceEdge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
