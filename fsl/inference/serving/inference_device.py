"""A device that asks edges for the rest of a trained split model, and computes it itself where they cannot."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fsl.argument_types import checks_types
from fsl.codecs.codec_choice import CodecChoice
from fsl.errors import ConfigError
from fsl.inference.planning import LinkState, SplitPolicy, StaticSplit
from fsl.inference.serving.answer import Answer, UnansweredError
from fsl.inference.serving.device_counts import DeviceCounts, DeviceFigures
from fsl.inference.serving.device_exits import DeviceExits
from fsl.inference.serving.device_part import DevicePart
from fsl.inference.serving.dispatcher import Dispatcher
from fsl.inference.serving.edge_greeting import LinkTerms
from fsl.inference.serving.edge_link import EdgeLink
from fsl.inference.serving.link_meter import LinkMeter
from fsl.inference.serving.local_rest import ModelAtHand
from fsl.inference.serving.loopback import refuse_unencrypted
from fsl.inference.serving.pending import PendingQuestion
from fsl.inference.serving.point_gate import PointGate
from fsl.inference.split_points import INPUT, OUTPUT, SplitPoints
from fsl.messages.identifiers import is_address
from fsl.segments.tensor_trees import as_values
from fsl.wire.connections import Dialler
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Certificates, Limits
from fsl.wire.tls import TlsContexts

_LOOK = 0.01  # seconds between two looks for an edge that is open


@dataclass(frozen=True, kw_only=True)
class EdgeStatus:
    """One of a device's edges: whether it takes questions, and over a lean stream; if not, why."""

    address: str
    is_open: bool
    is_lean: bool
    reason: str


class InferenceDevice:
    """Asks edges, in the order of their addresses, for a trained model's outputs; a context manager.

    `policy` chooses point and codec of each question (default: the edge computes everything). `codecs`: that it may
    choose, by name, beside "identity". `exits`: by which rows leave on the device. `fallback`: compute the rest here
    where no edge answers in time, or at all. `patience`: seconds for which one edge is waited for where a question has
    no deadline. `connect_seconds`: for which the constructor waits until an edge is open. `pending`: questions that may
    be without an answer at a time; who asks more waits. `assumed_mbit`: rate of the link until it is measured. `lean`:
    questions travel over lean streams where edges offer them, and else over gRPC. `token`: as `sign_grant` makes it.
    `certificates`: of a device; None for no TLS, to edges on this machine alone.

    Any thread may ask. ConfigError for what cannot be asked.
    """

    @checks_types(leave=("policy",))
    def __init__(
        self,
        points: SplitPoints,
        edges: Sequence[str],
        *,
        policy: SplitPolicy | None = None,
        codecs: Mapping[str, CodecChoice] | Sequence[str] = (),
        exits: DeviceExits | None = None,
        token: bytes = b"",
        certificates: Certificates | None = None,
        fallback: bool = True,
        patience: float = 30.0,
        connect_seconds: float = 5.0,
        pending: int = 256,
        assumed_mbit: float = 10.0,
        lean: bool = True,
        limits: Limits | None = None,
        counts: DeviceCounts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if not patience > 0 or not pending > 0 or not 0 < assumed_mbit < math.inf:
            raise ConfigError(f"patience={patience}, pending={pending}, assumed_mbit={assumed_mbit}: all are above 0")
        if not edges and not fallback:
            raise ConfigError("edges=[]: nobody could answer; name an edge, or allow the fallback")
        for address in edges:
            if not is_address(address) or edges.count(address) > 1:
                raise ConfigError(f"edges: {address!r} must be host:port, named once")
            if certificates is None:
                refuse_unencrypted(address)
        limits, model = limits or Limits(), threading.Lock()
        self.policy: SplitPolicy = policy or StaticSplit(INPUT)
        self._clock = clock
        self._counts = counts or DeviceCounts()
        self._part = DevicePart(points, codecs, exits, model, self._counts, clock)
        self._slots = threading.BoundedSemaphore(pending)
        self._unsettled: set[PendingQuestion] = set()
        self._closed = False
        self._lock = threading.Lock()  # of the set of unsettled questions
        terms = LinkTerms(
            token=token,
            model=points.digest(),
            points=(),
            codecs=self._part.codecs,
            most=limits.max_message_bytes,
            handshake_seconds=limits.handshake_seconds,
            lean=lean,
        )
        dialler = Dialler(certificates, limits)
        contexts = None if dialler.pem is None else TlsContexts(dialler.pem, server=False)
        self._rest = ModelAtHand(points, model, clock) if fallback else None
        self._dispatcher = Dispatcher(self._rest, PointGate(points, OUTPUT), patience, self._counts, clock)
        self._thread = NetworkThread("device-serving")

        async def started() -> list[EdgeLink]:
            links = [
                EdgeLink(address, terms, dialler, contexts, self._dispatcher, LinkMeter(assumed_mbit), clock)
                for address in edges
            ]
            for link in links:
                link.start()
            return links

        self._links = self._dispatcher.links = self._thread.run(started())
        if connect_seconds > 0:
            self.wait_open(connect_seconds)

    def infer(
        self, inputs: Any, *, point: str | None = None, codec: str | None = None, deadline: float | None = None
    ) -> Answer:
        """Returns the model's answer to a batch of inputs (B, ...), as the model takes them.

        `point`, `codec`: others than the policy chooses. `deadline`: seconds within which the answer is wanted. Where
        the device computes the rest itself, it begins early enough by what that took before; UnansweredError where it
        may not.
        """
        return self.submit(inputs, point=point, codec=codec, deadline=deadline).result()

    @checks_types(leave=("inputs",))
    def submit(
        self, inputs: Any, *, point: str | None = None, codec: str | None = None, deadline: float | None = None
    ) -> "Future[Answer]":
        """As `infer`, and does not wait for the answer: computes up to the point, asks, and returns."""
        values = as_values(inputs)
        if values is None:
            raise ConfigError("inputs=None: give a batch as the model takes it")
        if point is None or codec is None:
            choice = self.policy.choose(self.link_state(), self._clock())
            if choice.input_format is not None:
                raise ConfigError(
                    f"{choice.title}: inputs are sent as the model takes them; let the policy choose among others"
                )
            point, codec = point or choice.point, codec or choice.codec
        self._slots.acquire()
        try:
            one = self._part.question(values, point, codec, deadline)
        except BaseException:
            self._slots.release()
            raise
        with self._lock:
            self._unsettled.add(one)
        one.future.add_done_callback(lambda _: self._ended(one))
        if self._closed:
            one.fail(UnansweredError("the device is closed"))
        elif one.finished is not None:
            one.settle_at_hand(one.finished, self._clock(), compute=0.0, reason="")
        else:
            self._thread.call(self._dispatcher.ask, one)
        return one.future

    def _ended(self, one: PendingQuestion) -> None:
        with self._lock:
            self._unsettled.discard(one)
        self._slots.release()

    def link_state(self) -> LinkState:
        """Returns what is known of the link to the first edge that is open; rates of 0 where none is."""
        link = next((link for link in self._links if link.is_open), None)
        return LinkState(0.0, 0.0) if link is None else link.meter.state(link.unsent)

    @property
    def edges(self) -> list[EdgeStatus]:
        """Its edges, in order."""
        return [
            EdgeStatus(address=link.address, is_open=link.is_open, is_lean=link.is_lean, reason=link.reason)
            for link in self._links
        ]

    @property
    def figures(self) -> DeviceFigures:
        """What it has counted so far."""
        return self._counts.figures

    def wait_open(self, seconds: float) -> bool:
        """Wait until an edge is open, or all have refused; returns whether one is."""

        async def waited() -> bool:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while not any(link.is_open for link in self._links):
                        if all(link.refused for link in self._links):
                            break
                        await asyncio.sleep(_LOOK)
            return any(link.is_open for link in self._links)

        return self._thread.run(waited(), seconds + 30)

    def close(self) -> None:
        """End it; questions without an answer get an UnansweredError."""
        if self._closed:
            return
        self._closed = True

        async def stopped() -> None:
            for link in self._links:
                await link.stop()

        self._thread.run(stopped())
        self._thread.close()
        if self._rest is not None:
            self._rest.close()
        with self._lock:
            left = [*self._unsettled]
        for one in left:
            one.fail(UnansweredError("the device was closed before an answer came"))

    def __enter__(self) -> "InferenceDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
