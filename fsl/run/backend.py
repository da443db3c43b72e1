"""Where a simulation runs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fsl.argument_types import checks_types
from fsl.engines import COMPILED, ENGINES, TO_THE_BIT, EngineName
from fsl.errors import ConfigError
from fsl.flower.inline_grid import InlineGrid
from fsl.flower.internals import AppFactory
from fsl.round.workload import Workload
from fsl.run.app import workload_app
from fsl.settings.placement import Placement

_UNCOMPILED = {  # engines whose steps are not compiled, and why
    "loop": "the loop is what compiled code is held against",
    "fused": "it keeps the loop's bits, and compiled code rounds otherwise",
    "auto": "it measures engines as they are",
}


@checks_types("backend.")
@dataclass(frozen=True)
class Backend:
    """Where a simulation runs: in this process ("inline") or on Ray actors ("ray"), one per node.

    `engine`: what trains a cohort, as `fsl.engines.Engines` says: "loop" and "fused" agree to the bit, with "stacked",
    "pooled" and "auto", which measures, but for rounding. `compile`: the steps of "stacked" and "pooled" run as code
    that `torch.compile` makes, which rounds otherwise; where it makes none, they run as they are. `threads`: torch
    threads of every process; one thread and two do not agree to the bit. `accelerator`: "cpu", or "cuda".
    `cpus`, `gpus`: a Ray node's share. `address`: a running Ray cluster ("auto", or host:port).
    `start_timeout`, `round_timeout`: seconds until every Ray node must be up, and until it counts as dead in a round.
    """

    name: Literal["inline", "ray"] = "inline"
    engine: EngineName = "fused"
    compile: bool = False
    threads: int = 1
    accelerator: str = "cpu"
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    start_timeout: float = 120.0
    round_timeout: float = 3600.0

    def __post_init__(self) -> None:
        if self.name not in ("inline", "ray"):
            raise ConfigError(f"backend={self.name!r}: allowed are inline, ray")
        if self.engine not in ENGINES:
            raise ConfigError(f"backend.engine={self.engine!r}: allowed are {', '.join(ENGINES)}")
        if self.compile and self.engine not in COMPILED:
            named = " or ".join(f"backend.engine={name}" for name in COMPILED)
            raise ConfigError(
                f"backend.compile=true with backend.engine={self.engine}: {_UNCOMPILED[self.engine]}; use {named}"
            )
        if self.threads < 1:
            raise ConfigError(f"backend.threads={self.threads}: it must be at least 1")
        for name in ("start_timeout", "round_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"backend.{name}={getattr(self, name)}: it is a number of seconds above 0")
        for name in ("address", "cpus", "gpus", "start_timeout") if self.name == "inline" else ():
            if (value := getattr(self, name)) != getattr(Backend, name):
                raise ConfigError(f"backend.{name}={value}: backend=inline computes in this process; use backend=ray")
        try:
            kind = torch.device(self.accelerator).type
        except RuntimeError:
            kind = None
        if kind not in ("cpu", "cuda"):
            raise ConfigError(f"backend.accelerator={self.accelerator!r}: allowed are cpu, cuda, cuda:<index>")
        if kind == "cuda" and self.name == "inline" and not torch.cuda.is_available():
            raise ConfigError(f"backend.accelerator={self.accelerator}: torch sees no CUDA device here; use cpu")

    def identity(self) -> dict[str, str | bool]:
        """Returns the settings by which a run's bits depend on where it runs, beside threads and accelerator."""
        found: dict[str, str | bool] = {} if self.engine in TO_THE_BIT else {"backend.engine": self.engine}
        return found | ({"backend.compile": True} if self.compile else {})

    @property
    def placement(self) -> Placement | None:
        """Where devices and edges are; None where any node may host them."""
        return None

    def open(
        self, workload: Workload, nodes: int, around: Callable[[AppFactory], ClientApp] | None = None
    ) -> AbstractContextManager[Grid]:
        """Open a Grid of `nodes` nodes that work on this workload; closing it ends them.

        `around`: makes a node's ClientApp of what makes it otherwise, as where a run is profiled.
        """
        make_app: AppFactory = partial(workload_app, workload, self.engine, self.compile)
        if around is not None:
            make_app = partial(around, make_app)
        if self.name == "inline":
            return InlineGrid(make_app, nodes)
        from fsl.flower.ray_grid import RayGrid, RayOptions  # a second to import, so only where it is used

        options = RayOptions(self.address, self.cpus, self.gpus, self.start_timeout)
        return RayGrid(make_app, nodes, options, getattr(workload.allowed, "named", None))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Compute with so many torch threads, and put the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
