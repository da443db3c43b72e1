"""The Ray that a process's runs share: the first run starts or joins it, and the end of the program ends it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; without it Ray warns

import ray as ray  # others take it from here, so that it is imported after that line

from fsl.errors import ConfigError, RunError


class RaySession:
    """What this process has of Ray. Jobs of a sweep come one after another, and a start takes seconds."""

    _driver: ClassVar[str | None] = None  # Ray's name of the connection that was opened here
    _address: ClassVar[str | None] = None

    @classmethod
    def open(cls, address: str | None) -> None:
        """Start Ray here (None), or join the cluster at an address, unless this process has; ConfigError if none is.

        A Ray that the user's program has started or joined stays as it is, whatever the address.
        """
        if ray.is_initialized():
            ours = ray.get_runtime_context().get_worker_id() == cls._driver
            if not ours or address == cls._address:
                return
            ray.shutdown()
        with _own_sigterm():
            _start_or_join(address)
        cls._driver, cls._address = ray.get_runtime_context().get_worker_id(), address


def places(cpus: float, gpus: float) -> int:
    """Returns how many nodes of these shares the machines of a cluster that are up hold, with nothing else there."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    want = {"CPU": cpus, "GPU": gpus}
    return sum(int(min((m.get(kind, 0.0) + 1e-9) / share for kind, share in want.items() if share)) for m in machines)


def refuse_too_many(nodes: int, cpus: float, gpus: float) -> None:
    """Refuse nodes that no cluster of this size can place: Ray would wait for ever without a word."""
    if nodes > (room := places(cpus, gpus)):
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        have = ", ".join(f"{sum(m.get(kind, 0) for m in machines):g} {kind}" for kind in ("CPU", "GPU"))
        raise ConfigError(
            f"nodes={nodes} cannot be placed: each wants {cpus:g} CPU and {gpus:g} GPU, and Ray has {have}, room for "
            f"{room}; use fewer nodes, or smaller shares (backend.cpus=0.5)"
        )


def _start_or_join(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if address is None:
            _start(quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"backend.address={address}: no Ray cluster answers ({line}); start one with 'ray start --head', or leave "
            "the address out to start Ray here"
        ) from None


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
