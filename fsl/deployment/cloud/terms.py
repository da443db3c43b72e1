"""The terms on which nodes take part in a run: configuration group `deployment`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsl.deployment.cloud.closing import check_closing
from fsl.errors import ConfigError, one_of
from fsl.importing.building import build_kind
from fsl.messages.identifiers import is_address
from fsl.wire.options import Patience


@dataclass(frozen=True)
class Terms:
    """The terms on which nodes take part in a run (configuration group `deployment`).

    `wait`: seconds that the cloud waits, before the first round, for all devices and edges. `query`: seconds for a node
    to say what it hosts. `max_samples`: a device's n_k counts up to so many. `bind_keys`: a device must use the key by
    which its SuperNode is registered, and each device and edge has one key: that of the table `members` (see
    `enrolled`), or the first one that answered in this run. `roaming`: every device may move to every edge, where its
    link leads there or its edge does not answer; else only as the run's mobility model says. `replicate_every`: every
    so many steps an edge copies a session to another edge that the device may go to; 0: never. `join`, `straggler`,
    `answer`: as in `Patience`. `deadline`: seconds from a round's start, after which the cloud loses devices that have
    not finished; where devices wait for each other, first those that others wait for, and the rest after as long again.
    `quorum`: how many devices (a float: which share of the round's) must finish for a round to count. `max_norm`:
    the longest update that counts, in multiples of the round's median norm. None: no such limit.
    `line`: "auto" has each node open a line to the cloud, which listens at `line_listen` and is reached at
    `line_address` (None: at that port of the host where the node reaches the SuperLink); nodes without one, and all
    where it is "flower", are served by Flower's messages.
    `metrics`: where the cloud serves its metrics while the run is at work, as host:port; None: nowhere.
    """

    wait: float = 120.0
    query: float = 120.0
    max_samples: int | None = None
    bind_keys: bool = True
    members: str | None = None
    roaming: bool = False
    replicate_every: int = 0
    join: float = Patience.join
    straggler: float = Patience.straggler
    answer: float = Patience.answer
    deadline: float | None = None
    quorum: int | float | None = None
    max_norm: float | None = None
    line: Literal["auto", "flower"] = "auto"
    line_listen: str = "0.0.0.0:9097"
    line_address: str | None = None
    metrics: str | None = None

    def __post_init__(self) -> None:
        for name in ("wait", "query", "join", "straggler", "answer"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"deployment.{name}={getattr(self, name)}: it is a number of seconds above 0")
        if self.replicate_every < 0:
            raise ConfigError(f"deployment.replicate_every={self.replicate_every}: a number of steps, or 0 for never")
        if self.max_samples is not None and self.max_samples < 1:
            raise ConfigError(f"deployment.max_samples={self.max_samples}: it must be at least 1, or null")
        check_closing(**self.closing)
        one_of("deployment.line", self.line, ("auto", "flower"))
        for name in ("line_listen", "line_address", "metrics"):
            if (value := getattr(self, name)) is not None and not is_address(value):
                raise ConfigError(f"deployment.{name}={value!r}: give host:port")
        if self.members is not None and not self.bind_keys:
            raise ConfigError(
                f"deployment.members={self.members}: with bind_keys=false nobody's key counts; leave out one of them"
            )

    @property
    def closing(self) -> dict[str, Any]:
        """The rules that close a round, by name; `check_closing` checks their values."""
        return {"deadline": self.deadline, "quorum": self.quorum, "max_norm": self.max_norm}

    @property
    def table(self) -> Path | None:
        """Path of the operator's table of members; None without one."""
        return None if self.members is None else Path(self.members).expanduser()

    @property
    def patience(self) -> Patience:
        """Seconds that nodes wait in a round, unless their own configuration says otherwise."""
        return Patience(self.join, self.straggler, self.answer)


def build_terms(config: Mapping[str, Any]) -> Terms:
    """Read the terms from a configuration's group `deployment`; ConfigError for an invalid key or value."""
    return build_kind("deployment", {"_target_": "fsl.deployment.cloud.terms.Terms", **config}, Terms)
