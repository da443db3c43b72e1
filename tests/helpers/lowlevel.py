"""One edge with a round of its own, and a client that speaks frames and may misbehave at any stage."""

import queue
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fsl.data import IID, divide
from fsl.importing.spec import Spec
from fsl.installed import __version__
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame
from fsl.messages.heads import read_frame
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.messages.versions import PROTOCOL
from fsl.objective import as_objective
from fsl.round.deadline import Deadline
from fsl.round.device_side import DeviceSide
from fsl.round.edge_side import EdgeSide
from fsl.round.workload import Worker, Workload
from fsl.wire.device.device_round import DeviceRound
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Uplink
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.session_events import Gone
from fsl.wire.options import METHOD, Limits, Patience, channel_options
from fsl.wire.tokens import Claims, Signer, fingerprint, prove, public_bytes
from tests.helpers.small import small_model, small_task

IDENTITY = "fsl.codecs.Identity"
HONEST = 2  # devices with data
VERSIONS = {"protocol": PROTOCOL, "version": __version__}


def a_plan(epochs: int = 1, trainer: str = "fsl.trainers.Replicated", **kwargs) -> RoundPlan:
    return RoundPlan(
        run="run",
        seed=0,
        round=1,
        cohorts=(),
        fronts="averaged",
        trainer=Spec(trainer, kwargs),
        device=Spec("fsl.round.front_device.Device"),
        one_by_one=True,
        optimizer=Spec("torch.optim.SGD"),
        learning_rates={"front": 0.05, "back": 0.05},
        reset_optimizer=True,
        batch_size=16,
        local_epochs=epochs,
        up=Spec(IDENTITY),
        down=Spec(IDENTITY),
    )


def a_worker(folder: Path) -> Worker:
    task = small_task()
    partition = divide(task, IID(), HONEST, None, 0)
    return Worker(Workload(small_model(), "pool", task, partition, as_objective(None), folder))


@dataclass
class Edge:
    """A door with one round behind it; the round is served on a thread of its own."""

    folder: Path
    plan: RoundPlan
    devices: range
    limits: Limits = field(default_factory=lambda: Limits(handshake_seconds=20))
    patience: Patience = field(default_factory=lambda: Patience(join=120, straggler=120, answer=120))
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    signer: Signer = field(default_factory=Signer)
    fence: int = 7

    def __enter__(self):
        worker = a_worker(self.folder)
        states = {name: segment.layout.capture() for name, segment in worker.segments.items()}
        cohort = CohortTask(edge=0, devices=tuple(DeviceTask(device=device) for device in self.devices))
        self.server = EdgeSide(cohort, self.plan, worker, states).server
        self.admission = Admission(
            "run", 1, 0, self.fence, self.signer.public_key, set(self.devices), IDENTITY, IDENTITY
        )
        self.door = EdgeDoor(0, "127.0.0.1:0", None, self.folder / "journal", self.limits, steps="127.0.0.1:0")
        self.address = f"127.0.0.1:{self.door.port}"
        self.round = EdgeRound(self.server, self.admission, self.patience, Expected.of(worker, self.plan))
        self.outcome = None
        self.channel = grpc.insecure_channel(self.address, options=channel_options(256 << 20))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.door.begin(self.admission)
        self._thread.start()
        return self

    def _serve(self):
        self.outcome = self.round.serve()

    def __exit__(self, *_):
        self.channel.close()
        self.door.close()
        for device in self.devices:
            self.admission.inbox.put(Gone(device=device, reason="the test is over"))
        self._thread.join(30)
        assert not self._thread.is_alive()  # else it speaks into a later test

    def served(self, timeout: float = 60):
        """What the round came to."""
        self._thread.join(timeout)
        assert self.outcome is not None, "the round has not ended"
        return self.outcome

    def claims(self, device: int, **changed) -> Claims:
        mark = fingerprint(public_bytes(self.key.public_key()))
        return replace(Claims("run", 1, device, (0,), 1000, 10, self.fence, mark), **changed)

    def token(self, device: int, **changed) -> bytes:
        return self.signer.sign(self.claims(device, **changed))

    def attend(self, folder: Path, devices: range, meter=None, address=None, seconds=None):
        """These devices' honest part of the round; their fronts and why others were lost.

        `seconds`: after which the round closes for them.
        """
        worker = a_worker(folder)
        states = {name: segment.layout.capture() for name, segment in worker.segments.items()}
        side = DeviceSide([DeviceTask(device=device) for device in devices], self.plan, worker, states)
        uplink = Uplink(self.key, None, self.limits, meter)
        try:
            invitations = [
                Invitation(d, 0, address or self.address, self.token(d, steps=10**6), IDENTITY, IDENTITY)
                for d in devices
            ]
            devices_round = DeviceRound(side, invitations, uplink, self.patience, None)
            devices_round.deadline = None if seconds is None else Deadline(seconds)
            outcome = devices_round.run()
        finally:
            uplink.close()
        fronts = side.totals.get("front")
        return {} if fronts is None else fronts.states, outcome


class Stranger:
    """A connection to an edge's door that says whatever it is told to."""

    def __init__(self, edge: Edge, device: int, **changed):
        self.edge = edge
        self.device = device
        self.token = edge.token(device, **changed)
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = edge.channel.stream_stream(METHOD)(iter(self._said.get, None), timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._said.put(None)
        self.call.cancel()

    def say(self, data: bytes):
        self._said.put(data)

    def hear(self) -> pb.ToDevice:
        return read_frame(next(self.call), pb.ToDevice)[0]

    def refusal(self) -> tuple[grpc.StatusCode, str]:
        """The status that the stream ends with; whatever is said before is passed over."""
        try:
            while True:
                next(self.call)
        except StopIteration:
            return grpc.StatusCode.OK, ""
        except grpc.RpcError as error:
            return error.code(), error.details()

    def opening(self, **changed) -> bytes:
        said = {"token": self.token, "public_key": public_bytes(self.edge.key.public_key())}
        return frame(pb.ToEdge(open=pb.Open(**said | {"up": IDENTITY, "down": IDENTITY} | VERSIONS | changed)))

    def proof(self, nonce: bytes, edge: int = 0) -> bytes:
        return frame(pb.ToEdge(proof=pb.Proof(signature=prove(self.edge.key, nonce, edge, self.token))))

    def enter(self) -> pb.Opened:
        """Come in as an honest device does, up to its turn."""
        self.say(self.opening())
        self.say(self.proof(self.hear().challenge.nonce))
        opened = self.hear().opened
        assert self.hear().WhichOneof("body") == "begin"
        return opened
