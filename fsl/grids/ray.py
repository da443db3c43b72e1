"""A Grid whose nodes are Ray actors: devices, data and models stay resident, on this machine or on a cluster."""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; otherwise it warns

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fsl.errors import ConfigError, FslError, RunError
from fsl.grids.flower import AppFactory, SimulationGrid, node_context, raised, unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayOptions:
    """Where and on how much of a machine the nodes run.

    `address`: None starts Ray here and stops it at the end; "auto" or "host:port" joins a running cluster.
    `cpus`, `gpus`: each node's share, fractions allowed. `start_timeout`: seconds until every node must be up.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    start_timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.cpus >= 0 or not self.gpus >= 0 or self.cpus + self.gpus == 0:
            raise ConfigError(
                f"backend.cpus={self.cpus} and backend.gpus={self.gpus}: shares cannot be negative, nor both zero"
            )


class _NodeActor:
    """One node: its ClientApp and context, for as long as the actor lives."""

    def __init__(self, make_app: AppFactory, run_id: int, node_id: int):
        self.app: ClientApp = make_app()
        self.context: Context = node_context(run_id, node_id)

    def pid(self) -> int:
        return os.getpid()

    def answer(self, message: Message) -> Message:
        try:
            return self.app(message, self.context)
        except FslError as error:
            return raised(message, str(error))


class RayGrid(SimulationGrid):
    """Pins each node to a Ray actor.

    A node that dies in a round is answered for by an error reply that names it, and started again for the next.
    """

    def __init__(self, make_app: AppFactory, nodes: int, options: RayOptions | None = None):
        super().__init__(nodes)
        self.options = options or RayOptions()
        self._started_ray = False
        self._actors: dict[int, Any] = {}
        try:
            self._connect()
            self._refuse_what_cannot_be_placed()
            self._make_app = ray.put(make_app)
            self._actors = {node: self._spawn(node) for node in self._node_ids}
            self._wait_until_up(self._node_ids)
        except BaseException:
            self.close()
            raise

    def answer(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Send each message to its actor, and wait for all replies at most `timeout` seconds."""
        pending = {self._actors[m.metadata.dst_node_id].answer.remote(m): m for m in messages}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies = []
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            message = pending.pop(done[0])
            try:
                replies.append(ray.get(done[0]))
            except ray.exceptions.RayActorError:
                replies.append(self._replace(message, "died"))
            except ray.exceptions.RayTaskError as error:
                replies.append(raised(message, f"{type(error.cause).__name__}: {error.cause}"))
        replies.extend(self._replace(message, f"did not answer in {timeout} s") for message in pending.values())
        return replies

    def pids(self) -> dict[int, int]:
        """The process of each node."""
        return {node: ray.get(actor.pid.remote(), timeout=60) for node, actor in self._actors.items()}

    def release(self) -> None:
        """End the actors, and Ray itself where this Grid started it."""
        if ray.is_initialized():
            for actor in self._actors.values():
                ray.kill(actor, no_restart=True)
            self._actors.clear()
            if self._started_ray:
                ray.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
        try:
            if self.options.address is None:
                _start(quiet)
            else:
                ray.init(address=self.options.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"backend.address={self.options.address}: no Ray cluster answers ({line}); start one with "
                "'ray start --head', or leave the address out to start Ray here"
            ) from None
        self._started_ray = True

    def _refuse_what_cannot_be_placed(self) -> None:
        machines = [n["Resources"] for n in ray.nodes() if n["Alive"]]
        want = {"CPU": self.options.cpus, "GPU": self.options.gpus}
        places = sum(
            int(min((m.get(kind, 0.0) + 1e-9) / share for kind, share in want.items() if share)) for m in machines
        )
        if len(self._node_ids) > places:
            have = ", ".join(f"{sum(m.get(k, 0) for m in machines):g} {k}" for k in want)
            raise ConfigError(
                f"nodes={len(self._node_ids)} cannot be placed: each wants {self.options.cpus:g} CPU and "
                f"{self.options.gpus:g} GPU, and Ray has {have}, room for {places}; use fewer nodes, or smaller shares "
                "(backend.cpus=0.5)"
            )

    def _spawn(self, node: int) -> Any:
        actor = ray.remote(_NodeActor).options(
            num_cpus=self.options.cpus, num_gpus=self.options.gpus, max_restarts=0, max_task_retries=0
        )
        return actor.remote(self._make_app, self.run_id, node)

    def _wait_until_up(self, nodes: list[int]) -> None:
        waiting = {self._actors[node].pid.remote(): node for node in nodes}
        done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=self.options.start_timeout)
        if late:
            names = ", ".join(f"node-{waiting[ref]}" for ref in late)
            raise ConfigError(
                f"{names} did not start in {self.options.start_timeout:g} s; other jobs may hold the cluster's "
                "resources: wait for them, use fewer nodes, or raise backend.start_timeout"
            )
        for ref in done:
            try:
                ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, FslError) else error from None

    def _replace(self, message: Message, what: str) -> Message:
        node = message.metadata.dst_node_id
        log.warning("node-%d %s; it is started again for the next round", node, what)
        ray.kill(self._actors[node], no_restart=True)
        self._actors[node] = self._spawn(node)
        return unavailable(message, f"node-{node} {what}")


def _start(options: dict[str, Any]) -> None:
    """Start Ray on this machine; RunError where it does not come up."""
    for attempts_left in (1, 0):
        try:
            ray.init(address="local", num_cpus=max(os.cpu_count() or 1, 1), include_dashboard=False, **options)
            return
        except Exception as error:  # Ray gives itself 30 s, and raises nothing more precise when they are over
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not attempts_left:
                raise RunError(
                    "Ray did not start within 30 s, twice: the machine is very busy, or short of memory; try again "
                    "later, or use backend=inline"
                ) from None
