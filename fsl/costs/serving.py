"""Says how an edge serves the devices of a round: in a queue, in turn, in lockstep, or without replies."""

from dataclasses import dataclass
from typing import Literal

from fsl.argument_types import checks_types
from fsl.trainers import EdgeTrainer

Kind = Literal["none", "queue", "turn", "lockstep", "stream", "arrival"]


@checks_types()
@dataclass(frozen=True)
class Serving:
    """How an edge serves the devices of a round.

    "none": without an edge, devices train the whole model. "queue": the edge serves uploads first in first out, as many
    at once as it has slots. "turn": one device after another, in order of id. "lockstep": a step waits for every live
    device, and the replies for the whole step. "stream": devices wait for no reply. "arrival": one back learns from
    uploads first in first out, one at a time, and fronts are merged as devices finish.

    `relayed`: in turn, a device gets its front when the one before has sent it. `window`: in lockstep, the uploads of a
    device that the edge answers together. `passes`: how often the back runs over an upload.
    """

    kind: Kind
    relayed: bool = False
    window: int = 1
    passes: float = 1.0

    @property
    def shared(self) -> bool:
        """Whether devices wait for each other, since one back learns from all of them."""
        return self.kind in ("turn", "lockstep")


@checks_types()
def serving_of(trainer: EdgeTrainer | None, fronts: str = "averaged") -> Serving:
    """Derive how an edge trainer serves its devices from its declarations; `trainer` is None without an edge.

    Lockstep trainers wait for all, divisible ones for nobody, others train device after device.
    """
    if trainer is None:
        return Serving("none")
    if not trainer.window:
        return Serving("stream", passes=trainer.passes)
    if trainer.asynchronous:
        return Serving("arrival", passes=trainer.passes)
    if trainer.lockstep:
        return Serving("lockstep", window=trainer.window, passes=trainer.passes)
    if trainer.divisible:
        return Serving("queue", passes=trainer.passes)
    return Serving("turn", relayed=fronts == "relayed", passes=trainer.passes)
