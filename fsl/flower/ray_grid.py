"""A Grid whose nodes are Ray actors, which keep devices, data and models, on this machine or on a cluster."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; without it Ray warns

import ray
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fsl.errors import ConfigError, FslError, RunError
from fsl.faults import Failure, fault_of, said
from fsl.flower.internals import AppFactory, SimulationGrid, node_context, unavailable
from fsl.segments.uncompiled import leave_out_compiler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayOptions:
    """Says where the nodes run, and with how much of a machine.

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
    """One node: its ClientApp and context, as long as the actor lives."""

    def __init__(self, path: list[str], run_id: int, node_id: int):
        leave_out_compiler()  # before the model's own imports; a worker of Ray's is a program of fsl's from here on
        sys.path += [folder for folder in path if folder not in sys.path]  # a script may have extended its path
        self.context: Context = node_context(run_id, node_id)

    def begin(self, bundle: tuple[AppFactory, dict[str, type]]) -> int:
        # Not in the constructor: the bundle's classes may need that path for their imports.
        make_app, self.named = bundle
        self.app: ClientApp = make_app()
        return os.getpid()

    def pid(self) -> int:
        return os.getpid()

    def answer(self, message: Message, named: dict[str, type]) -> Message | Failure:
        self.named.update(named)  # the table that the app's nodes look into
        try:
            return self.app(message, self.context)
        except BaseException as error:  # an exit in the user's code does not kill the node either
            return Failure.of(error)


class RayGrid(SimulationGrid):
    """Pins each node to a Ray actor.

    For a node that dies in a round it returns an error reply that names the node, and it starts the node again for the
    next; a node's exception it raises here, in one line, with the node's own traceback as a note.

    `named`: classes that plans name, by path. Ray sends them to the nodes, those of a script, a notebook or a function
    by value; later additions go with the next message.
    """

    def __init__(
        self,
        make_app: AppFactory,
        nodes: int,
        options: RayOptions | None = None,
        named: dict[str, type] | None = None,
    ):
        super().__init__(nodes)
        self._named = {} if named is None else named
        self._sent = dict(self._named)
        self.options = options or RayOptions()
        self._started_ray = False
        self._actors: dict[int, Any] = {}
        self._begun: dict[int, Any] = {}
        try:
            self._connect()
            self._refuse_what_cannot_be_placed()
            self._bundle = self._put(make_app)
            self._actors = {node: self._spawn(node) for node in self._node_ids}
            self._wait_until_up(self._node_ids)
        except BaseException:
            self.close()
            raise

    def answer(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Send each message to its actor, and wait for all replies at most `timeout` seconds."""
        new = {path: kind for path, kind in self._named.items() if self._sent.get(path) is not kind}
        pending = {self._actors[m.metadata.dst_node_id].answer.remote(m, new): m for m in messages}
        deadline = None if timeout is None else time.monotonic() + timeout
        replies = []
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            message = pending.pop(done[0])
            try:
                reply = ray.get(done[0])
            except ray.exceptions.RayActorError:
                replies.append(self._replace(message, "died"))
                continue
            except ray.exceptions.RayTaskError as error:
                raise fault_of(_cause(error), f"node {message.metadata.dst_node_id}") from error
            if isinstance(reply, Failure):
                raise reply.error()
            replies.append(reply)
        replies.extend(self._replace(message, f"did not answer in {timeout} s") for message in pending.values())
        return replies

    def pids(self) -> dict[int, int]:
        """Returns each node's process id."""
        return {node: ray.get(actor.pid.remote(), timeout=60) for node, actor in self._actors.items()}

    def _put(self, make_app: AppFactory) -> Any:
        """Put what every node gets into Ray's store; ConfigError where it cannot go to another process."""
        try:
            return ray.put((make_app, self._named))
        except (TypeError, PicklingError, AttributeError, RecursionError) as error:
            reason = said(error.__cause__ or error)  # Ray's own text is pages long
            raise ConfigError(
                f"backend=ray: the model, the data or the loss cannot be sent to another process ({reason}); "
                "make what is named there when it is first used, or use backend=inline"
            ) from error

    def release(self) -> None:
        """Kill the actors, and stop Ray where this Grid started it."""
        if ray.is_initialized():
            for actor in self._actors.values():
                ray.kill(actor, no_restart=True)
            self._actors.clear()
            if self._started_ray:
                ray.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        with _own_sigterm():
            self._start_or_join()

    def _start_or_join(self) -> None:
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
        made: Any = actor.remote(list(sys.path), self.run_id, node)
        self._begun[node] = made.begin.remote(self._bundle)
        return made

    def _wait_until_up(self, nodes: list[int]) -> None:
        waiting = {self._begun[node]: node for node in nodes}
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
                if isinstance(error.cause, FslError):
                    raise error.cause from None
                raise ConfigError(
                    f"backend=ray: what a node needs cannot be made in its process ({said(_cause(error))}); install "
                    "the module there, or use backend=inline"
                ) from error

    def _replace(self, message: Message, what: str) -> Message:
        node = message.metadata.dst_node_id
        log.warning("node-%d %s; it is started again for the next round", node, what)
        ray.kill(self._actors[node], no_restart=True)
        self._actors[node] = self._spawn(node)
        return unavailable(message, f"node-{node} {what}")


def _cause(error: ray.exceptions.RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, BaseException) else error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler, which Ray would replace by its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and before != signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)


def _start(options: dict[str, Any]) -> None:
    """Start Ray on this machine; RunError where it does not come up."""
    for attempts_left in (1, 0):
        try:
            ray.init(address="local", num_cpus=max(os.cpu_count() or 1, 1), include_dashboard=False, **options)
            return
        except Exception as error:  # Ray allows itself 30 s, and raises nothing more precise after them
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if not attempts_left:
                raise RunError(
                    "Ray did not start within 30 s, twice: the machine is very busy, or short of memory; try again "
                    "later, or use backend=inline"
                ) from None
