"""Runs a whole federation as processes of this machine: a SuperLink, edges and devices, over TLS on the loopback."""

import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from fsl.argument_types import checks_types
from fsl.deployment.certs import CertificateFolder, issue
from fsl.deployment.cloud.enrolled import TABLE, add_nodes
from fsl.deployment.local import flower_programs as flower
from fsl.deployment.local import flower_runs as runs
from fsl.deployment.local.control import Control
from fsl.deployment.local.federation_record import (
    SUPERLINK,
    Config,
    FederationRecord,
    LocalNode,
    alone_in,
    read_record,
    record_path,
    write_record,
)
from fsl.deployment.local.flower_runs import RunEnd
from fsl.deployment.local.local_plan import free_ports, groups_of, identities_of, is_listening, plan_nodes
from fsl.deployment.local.run_overrides import completed
from fsl.deployment.local.run_record import LocalRun, forget_run, read_run, write_run
from fsl.deployment.local.supervised_run import SupervisedRun
from fsl.deployment.processes import ProcessInTree, end, is_alive, last_words, members, send, start, wait_until
from fsl.errors import ConfigError, RunError
from fsl.private_files import private_folder

_POLL = 0.2  # seconds between two looks at starting processes
_ASK = 1.0  # seconds between two questions to the SuperLink


class LocalFederation:
    """One SuperLink, `edges` edge SuperNodes and the devices' SuperNodes, as a context manager or by start and stop.

    It writes only into `folder`. `devices_per_node` devices share a SuperNode; `tops`: above each edge is a server, on
    a SuperNode of its own (two hops); `data` is the devices' data path; with `mutual_tls` devices show edges a
    certificate, and edges the servers above them. `node_config` adds to single nodes' configuration, `environment` to
    the environment of all; `app` is the folder of another Flower app to run. `timeout`: seconds for the nodes to come
    online.
    """

    @checks_types()
    def __init__(
        self,
        folder: Path,
        edges: int = 2,
        devices: int = 4,
        *,
        devices_per_node: int = 1,
        tops: bool = False,
        data: Path | None = None,
        mutual_tls: bool = False,
        node_config: Mapping[str, Config] | None = None,
        environment: Mapping[str, str] | None = None,
        app: Path | None = None,
        timeout: float = 120.0,
    ):
        for name, count in (("edges", edges), ("devices", devices), ("devices-per-node", devices_per_node)):
            if count < 1:
                raise ConfigError(f"{name}={count}: a federation needs one at least")
        if data is not None and not data.exists():
            raise ConfigError(f"data={data}: there is no such file or folder")
        self.folder = folder.absolute()
        self.timeout = timeout
        self.certificates = CertificateFolder(self.folder / "certs")
        self._groups = groups_of(devices, devices_per_node)
        self._tops = tops
        self._data = None if data is None else data.absolute()
        self._mutual_tls = mutual_tls
        self._node_config = node_config
        self._new = FederationRecord("", edges, devices, str(app or self.folder / "app"), dict(environment or {}), ())
        self._record: FederationRecord | None = None

    @classmethod
    def attach(cls, folder: Path) -> Self | None:
        """Attach to the federation that another process started in this folder; None where there is none."""
        record = read_record(folder)
        if record is None:
            return None
        federation = cls(folder, record.edges, record.devices)
        federation._record = record
        return federation

    @property
    def record(self) -> FederationRecord:
        """The record of what runs where; RunError before the start."""
        if self._record is None:
            raise RunError(f"no federation was started in {self.folder}")
        return self._record

    @property
    def home(self) -> Path:
        """Path of the FLWR_HOME in which `flwr` knows this federation, by the name `federation`."""
        return self.folder / "flwr"

    @property
    def table(self) -> Path:
        """Path of the table that binds devices and edges to their nodes' keys, for `deployment.members`."""
        return self.folder / TABLE

    @property
    def control(self) -> Control:
        """The control of the SuperLink; RunError before the start."""
        return Control(self.record.superlink, self.certificates.ca)

    def log(self, name: str) -> Path:
        """Returns the path of a process's log."""
        return self.folder / "logs" / f"{name}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all processes and wait until every node is online; on any failure end all of them.

        ConfigError where a federation is running in the folder; RunError where a process ends or is late.
        """
        with alone_in(self.folder):
            before = read_record(self.folder)
            if before is not None and (alive := [name for name, p in before.processes.items() if is_alive(p)]):
                raise ConfigError(
                    f"{self.folder}: a federation is running there ({len(alive)} processes); end it with "
                    "fsl-federation down, or choose another folder"
                )
            if before is not None:
                end(list(before.processes.values()))
            try:
                self._start()
            except BaseException:
                self._end()
                raise

    def stop(self) -> int:
        """End all processes of the federation; returns how many were still alive."""
        with alone_in(self.folder):
            return self._end()

    def run(
        self,
        overrides: Sequence[str],
        out: Path | None = None,
        look: Callable[[], None] = lambda: None,
        retries: int = 0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> RunEnd:
        """Run the app with these Hydra overrides, and write results to `out`; calls `look` now and then meanwhile.

        Where the run ends before its time, it is sent again, up to `retries` times in a row without a new round, and
        goes on from its last checkpoint; `tell` gets a line for it. KeyboardInterrupt stops the run. RunError where
        `flwr` refuses it, or the SuperLink is gone.
        """
        folder = None if out is None else out.absolute()
        return SupervisedRun(_Here(self, folder), overrides, folder, retries, tell).run(look)

    def at_work(self) -> bool:
        """Returns whether a run's cloud is at work."""
        return any(member.command.startswith("flwr-serverapp") for member in self.pids(SUPERLINK))

    def last_run(self) -> LocalRun | None:
        """Returns the run that was sent last; None before the first."""
        return read_run(self.folder)

    def online(self) -> dict[str, bool]:
        """Returns, by name, whether the SuperLink counts each node as online."""
        online = self.control.online()
        return {node.name: node.id in online for node in self.record.nodes}

    def alive(self) -> dict[str, bool]:
        """Returns, by name, whether each process is alive."""
        return {name: is_alive(process) for name, process in self.record.processes.items()}

    def pids(self, name: str) -> list[ProcessInTree]:
        """Returns a process and all that it started, with commands: `flwr-clientapp ...` is a node's app at work."""
        return members(self.record.processes[name])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process and all that it started, as when a device loses its power."""
        for member in self.pids(name):
            send(member, number)

    def restart(self, name: str) -> None:
        """End what is left of a SuperNode, start it again as it was, and wait until it is online.

        After a SIGKILL that takes a minute: until then the SuperLink counts the node as online, and refuses it.
        """
        node = self.record.node(name)
        end([self.record.processes[name]])
        self._wait([SUPERLINK], lambda: not self.online()[name], _ASK, f"notice the end of {name}")
        self._start_node(node)
        self._wait_online([node])

    def _start(self) -> None:
        for stale in ("logs", "nodes", "flwr", "app"):
            shutil.rmtree(self.folder / stale, ignore_errors=True)
        record_path(self.folder).unlink(missing_ok=True)
        forget_run(self.folder)
        private_folder(self.folder / "logs")
        edges = self._new.edges
        issue(self.certificates.folder, identities_of(edges, self._groups, self._tops), add=True)
        address = f"127.0.0.1:{free_ports(1)[0]}"
        nodes = plan_nodes(
            *(self.folder, self.certificates, edges, self._groups, self._data, self._mutual_tls, self._node_config),
            tops=self._tops,
        )
        self.table.unlink(missing_ok=True)
        add_nodes(self.table, {node.name: self.certificates.node_public_key(node.name) for node in nodes})
        self._write(replace(self._new, superlink=address, nodes=tuple(nodes)))
        flower.write_connection(self.home, address, self.certificates)
        flower.write_app(self.folder / "app")
        self._spawn(SUPERLINK, flower.superlink_command(self.certificates, address))
        self._wait([SUPERLINK], lambda: flower.answers(address, self.certificates), _POLL, "answer")
        registered = [self._registered(node) for node in nodes]
        self._write(replace(self.record, nodes=tuple(registered)))
        for node in registered:
            self._start_node(node)
        self._wait_online(registered)

    def _start_node(self, node: LocalNode) -> None:
        config = self.folder / "nodes" / f"{node.name}.toml"
        flower.write_node_config(config, node.config)
        private_folder(Path(str(node.config["state"])))
        app = Path(self.record.app)
        allowed = [] if app == self.folder / "app" else [flower.bundle_hash(app)]  # another app than fsl's own
        command = flower.supernode_command(self.certificates, self.record.superlink, node, config, allowed)
        self._spawn(node.name, command)

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        # A home for each node: Flower takes an app that another node is still installing for an installed one.
        environment = flower.environment(self.home / name, self.record.environment)
        self._write(self.record.started(start(name, command, self.log(name), environment)))

    def _registered(self, node: LocalNode) -> LocalNode:
        return replace(node, id=self.control.register(self.certificates.node_public_key(node.name), node.name))

    def _wait_online(self, nodes: Sequence[LocalNode]) -> None:
        def are_online() -> bool:
            if not all(is_listening(node.port) for node in nodes):
                return False  # a SuperNode listens before it joins: no need to ask the SuperLink yet
            online = self.online()
            return all(online[node.name] for node in nodes)

        self._wait([SUPERLINK, *(node.name for node in nodes)], are_online, _POLL, "be online")

    def _wait(self, names: Sequence[str], condition: Callable[[], bool], every: float, what: str) -> None:
        def reached() -> bool:
            if dead := self._dead(names):
                raise RunError(dead)
            return condition()

        if not wait_until(reached, self.timeout, every):
            late = [name for name in names if name != SUPERLINK and not self.online()[name]] or [SUPERLINK]
            raise RunError(f"{', '.join(late)} did not {what} within {self.timeout:g} s; see {self.log(late[0])}")

    def _dead(self, names: Sequence[str]) -> str:
        for name in names:
            if not is_alive(self.record.processes[name]):
                return f"{name} has ended ({last_words(self.log(name))}); see {self.log(name)}"
        return ""

    def _submit(self, out: Path | None, overrides: Sequence[str]) -> str:
        complete, metrics = completed(overrides, self.table)
        run = runs.submit(self.home, self.record.app, complete)
        write_run(self.folder, LocalRun(run, "" if out is None else str(out), metrics))
        return run

    def _watch(self, run: str, look: Callable[[], None]) -> RunEnd:
        return runs.watch(self.home, self.control, run, self.at_work, look, lambda: self._dead([SUPERLINK]))

    def _write(self, record: FederationRecord) -> None:
        self._record = record
        write_record(self.folder, record)

    def _end(self) -> int:
        if self._record is None:
            return 0
        processes = self._record.processes
        nodes = [process for name, process in processes.items() if name != SUPERLINK]
        ended = end(nodes) + end([process for name, process in processes.items() if name == SUPERLINK])
        record_path(self.folder).unlink(missing_ok=True)
        return ended


class _Here:
    """The SuperLink of a local federation, for a supervised run."""

    def __init__(self, federation: LocalFederation, out: Path | None) -> None:
        self.submit = partial(federation._submit, out)
        self.watch = federation._watch
        self._home = federation.home

    def stop(self, run: str) -> None:
        runs.stop(self._home, run)
