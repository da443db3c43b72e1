"""A device of a demonstration: asks rows of a run's data by a policy, at a pace, and remembers what came."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from fsl.simulations.serving.demo_figures import SeenAnswer, SeenLink, ShownDevice, percentile

from fsl.data import Examples
from fsl.errors import SplitError
from fsl.inference.links import ShapedLink
from fsl.inference.planning import DynamicSplit, LinkState, Scouting, SplitChoice, predicted
from fsl.inference.serving import Answer, InferenceDevice, UnansweredError
from fsl.objective import Objective
from fsl.round.evaluation import Tally
from fsl.segments.tensor_trees import as_values

KEPT_SECONDS = 60.0
_BEHIND = 60.0  # seconds beyond the deadline after which an answer is given up


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a device asks: `rows` of these examples a question, at most `rate` questions a second, one at a time."""

    examples: Examples
    objective: Objective
    rows: int
    rate: float
    deadline: float


class AskingDevice:
    """Asks on a thread of its own from `start` until `close`; others may read its figures meanwhile."""

    def __init__(
        self,
        name: str,
        link_name: str,
        device: InferenceDevice,
        link: ShapedLink,
        policy: Scouting,
        asking: Asking,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._link_name, self._device, self._link, self._policy, self._asking = link_name, device, link, policy, asking
        self._clock = clock
        self._tally = Tally(asking.objective)
        self._lock = threading.Lock()  # of what is below
        self._asked = self._lost = 0
        self._seconds: list[float] = []
        self._answers: deque[SeenAnswer] = deque()
        self._links: deque[SeenLink] = deque()
        self._began = clock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"asking-{name}", daemon=True)

    def start(self, began: float) -> None:
        """Begin to ask; `began` is second 0, by the clock."""
        self._began = began
        self._thread.start()

    def close(self) -> None:
        """Ask no more, and wait for the last answer."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def milliseconds(self) -> list[float]:
        """From question to answer, of all answers."""
        with self._lock:
            return [1e3 * each for each in self._seconds]

    def look(self) -> None:
        """Remember how the link is now."""
        state = self._device.link_state()
        estimated = state.up_mbit if state.up_mbit > 0 else None
        now = self._clock() - self._began
        with self._lock:
            self._links.append(SeenLink(round(now, 2), self._link.mbit, estimated, self._split))
            _forget(self._links, now)

    def shown(self) -> ShownDevice:
        """Returns the figures of now."""
        figures, state = self._device.figures, self._device.link_state()
        now = self._clock() - self._began
        with self._lock:
            _forget(self._answers, now)
            last = [one.ms for one in self._answers]
            return ShownDevice(
                name=self.name,
                link=self._link_name,
                asked=self._asked,
                at_edge=figures.answers.get("edge", 0),
                on_device=figures.answers.get("device", 0),
                lost=self._lost,
                exits=figures.exits,
                fallbacks=figures.fallbacks,
                switches=self._dynamic.switches,
                split=self._split,
                mbit=self._link.mbit,
                estimated=state.up_mbit if state.up_mbit > 0 else None,
                p50_ms=percentile(last, 50),
                p99_ms=percentile(last, 99),
                predicted_ms=self._predicted(state),
                accuracy=self._tally.score().accuracy if self._seconds else None,
                answers=tuple(self._answers),
                links=tuple(self._links),
            )

    @property
    def _dynamic(self) -> DynamicSplit:
        assert isinstance(self._policy.policy, DynamicSplit)
        return self._policy.policy

    @property
    def _split(self) -> str:
        return "none yet" if self._policy.chosen is None else self._policy.chosen.title

    def _predicted(self, state: LinkState) -> float | None:
        choice = self._policy.chosen
        if choice is None:
            return None
        with suppress(SplitError):
            seconds = predicted(self._dynamic.costs, choice, state).seconds
            return 1e3 * seconds if seconds < self._asking.deadline else None
        return None

    def _run(self) -> None:
        due, number = self._clock(), 0
        while not self._ending.wait(max(0.0, due - self._clock())):
            due = max(due, self._clock()) + 1 / self._asking.rate
            self._ask(number)
            number += 1

    def _ask(self, number: int) -> None:
        asking = self._asking
        rows = torch.arange(number * asking.rows, (number + 1) * asking.rows) % len(asking.examples)
        inputs, targets = asking.examples.batch(rows)
        with self._lock:
            self._asked += 1
        try:
            future = self._device.submit(as_values(inputs), deadline=asking.deadline)
            answer = future.result(asking.deadline + _BEHIND)
        except (UnansweredError, TimeoutError):
            with self._lock:
                self._lost += 1
            return
        self._seen(answer, targets)

    def _seen(self, answer: Answer, targets: torch.Tensor) -> None:
        kind = "fallback" if answer.reason else answer.where
        at = self._clock() - self._began
        with self._lock:
            self._tally.add(answer.outputs, targets)
            self._seconds.append(answer.seconds.total)
            self._answers.append(SeenAnswer(round(at, 2), round(1e3 * answer.seconds.total, 2), kind))


def _forget(seen: "deque[SeenAnswer] | deque[SeenLink]", now: float) -> None:
    while seen and seen[0].at < now - KEPT_SECONDS:
        seen.popleft()


def choices_of(points: tuple[str, ...], codecs: tuple[str, ...]) -> list[SplitChoice]:
    """Returns what a policy chooses among: cuts by each codec, and the two extremes."""
    first, *cuts, last = points
    return [SplitChoice(first), *(SplitChoice(cut, codec) for cut in cuts for codec in codecs), SplitChoice(last)]
