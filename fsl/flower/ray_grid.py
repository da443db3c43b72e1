"""A Grid whose nodes are Ray actors, which keep devices, data and models, on this machine or on a cluster."""

import gc
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any

from flwr.app import Array, Context, Message
from flwr.clientapp import ClientApp

from fsl.errors import ConfigError, FslError
from fsl.faults import Failure, fault_of, said
from fsl.flower.internals import AppFactory, SimulationGrid, node_context, unavailable
from fsl.flower.ray_session import RaySession, places, ray, refuse_too_many
from fsl.flower.shared_arrays import Envelope, enveloped
from fsl.segments.uncompiled import leave_out_compiler

log = logging.getLogger(__name__)

# What Ray raises for a task whose actor, machine or result is gone.
_GONE = (ray.exceptions.RayActorError, ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)


@dataclass(frozen=True)
class RayOptions:
    """Says where the nodes run, and with how much of a machine.

    `address`: None starts Ray here, for all runs of this process; "auto" or "host:port" joins a running cluster.
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
        gc.freeze()  # imports, models and data stay: nobody need look through them for garbage in the middle of a round
        return os.getpid()

    def pid(self) -> int:
        return os.getpid()

    def machine(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def answer(self, envelope: Envelope, named: dict[str, type], shared: Sequence[Array] | None) -> Message | Failure:
        self.named.update(named)  # the table that the app's nodes look into
        try:
            return self.app(envelope.opened(shared or ()), self.context)
        except BaseException as error:  # an exit in the user's code does not kill the node either
            return Failure.of(error)


class RayGrid(SimulationGrid):
    """Pins each node to a Ray actor, and spreads them over the cluster's machines.

    For a node that dies in a round it returns an error reply that names the node, and starts the node again for the
    next round, on what is left of the cluster. Where that has no room the run goes on without the node: `get_node_ids`
    leaves it out, so that others get its devices, until there is room. A node's exception it raises here, in one line,
    with the node's own traceback as a note.

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
        self._actors: dict[int, Any] = {}
        self._begun: dict[int, Any] = {}
        self._lost: dict[int, bool] = {}  # nodes that are not up, and whether somebody was told
        try:
            RaySession.open(self.options.address)
            refuse_too_many(nodes, self.options.cpus, self.options.gpus)
            self._bundle = self._put(make_app)
            for node in self._node_ids:
                self._spawn(node)
            self._wait_until_up(self._node_ids)
        except BaseException:
            self.close()
            raise

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes that are up, after nodes that died had time to come up again."""
        for node in sorted(self._lost):
            self._bring_back(node)
        return [node for node in self._node_ids if node not in self._lost]

    def answer(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """Send each message to its actor, and wait for all replies at most `timeout` seconds."""
        new = {path: kind for path, kind in self._named.items() if self._sent.get(path) is not kind}
        envelopes, shared = enveloped(messages)
        replies, pending = [], {}
        for message, envelope in zip(messages, envelopes):
            node = message.metadata.dst_node_id
            if node in self._lost:
                replies.append(unavailable(message, f"node-{node} is not up"))
            else:
                pending[self._actors[node].answer.remote(envelope, new, shared)] = message
        deadline = None if timeout is None else time.monotonic() + timeout
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(pending), num_returns=1, timeout=left)
            if not done:
                break
            replies.append(self._reply(done[0], pending.pop(done[0])))
        replies.extend(self._replace(message, f"did not answer in {timeout} s") for message in pending.values())
        return replies

    def _reply(self, done: Any, message: Message) -> Message:
        try:
            reply: Message | Failure = ray.get(done)
        except _GONE:
            return self._replace(message, "died")
        except ray.exceptions.RayTaskError as error:
            raise fault_of(_cause(error), f"node {message.metadata.dst_node_id}") from error
        if isinstance(reply, Failure):
            raise reply.error()
        return reply

    def pids(self) -> dict[int, int]:
        """Returns each node's process id."""
        return {node: ray.get(actor.pid.remote(), timeout=60) for node, actor in self._actors.items()}

    def machines(self) -> dict[int, str]:
        """Returns Ray's name of each node's machine."""
        return {node: ray.get(actor.machine.remote(), timeout=60) for node, actor in self._actors.items()}

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
        """Kill the actors; Ray stays for the next run of this process."""
        if ray.is_initialized():
            for actor in self._actors.values():
                ray.kill(actor, no_restart=True)
        self._actors.clear()

    def _spawn(self, node: int) -> None:
        actor = ray.remote(_NodeActor).options(
            num_cpus=self.options.cpus,
            num_gpus=self.options.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        self._actors[node] = actor.remote(list(sys.path), self.run_id, node)
        self._begun[node] = self._actors[node].begin.remote(self._bundle)

    def _bring_back(self, node: int) -> None:
        """Wait for a node that was started again, as long as the cluster has room for it."""
        deadline = time.monotonic() + self.options.start_timeout
        while self._has_room() and time.monotonic() < deadline:
            if node not in self._actors:
                self._spawn(node)
            if ray.wait([self._begun[node]], timeout=1.0)[0]:
                try:
                    ray.get(self._begun[node])
                except _GONE:  # its new machine is gone as well, or was before anybody noticed
                    self._give_up(node)
                    continue
                del self._lost[node]
                return
        if not self._lost[node]:
            self._lost[node] = True
            log.warning(
                "the cluster has no room for node-%d: the run goes on without it, and others get its devices, until "
                "there is room",
                node,
            )
        self._give_up(node)

    def _has_room(self) -> bool:
        """Returns whether the machines that are up hold the nodes that are up, and one more."""
        return places(self.options.cpus, self.options.gpus) > len(self._node_ids) - len(self._lost)

    def _give_up(self, node: int) -> None:
        if (actor := self._actors.pop(node, None)) is not None:
            ray.kill(actor, no_restart=True)

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
        self._give_up(node)
        self._lost[node] = False
        return unavailable(message, f"node-{node} {what}")


def _cause(error: ray.exceptions.RayTaskError) -> BaseException:
    return error.cause if isinstance(error.cause, BaseException) else error
