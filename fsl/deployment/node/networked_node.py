"""Runs a node of a real federation: its devices train over the wire, its edge serves devices of other nodes."""

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ArrayRecord, MetricRecord

from fsl.deployment.node.accountable import charged
from fsl.deployment.node.meters import Meters
from fsl.deployment.node.moving_edge import build_moving_round
from fsl.deployment.node.node_reports import own_reports, served_reports
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import RoundAccount
from fsl.deployment.node.owner_allows import refuse_evaluation, refuse_part
from fsl.deployment.node.party_node import (
    refuse_scoring,
    refuse_sessions,
    scores_of,
    scores_parties,
    the_party,
    vertical_round,
)
from fsl.deployment.node.scratch import scratch_folder
from fsl.deployment.node.second_hop import admission_above, refuse_second_hop, remote_above, serve_above
from fsl.deployment.node.work_done import Work, restarted
from fsl.errors import ConfigError, FslError, RunError
from fsl.flower.frozen_records import take_frozen
from fsl.flower.records import record_to_states
from fsl.installed import __version__
from fsl.messages.node_part import EdgePart, NodePart, TopPart
from fsl.messages.round_plan import CohortTask, EvaluatePlan, RoundPlan
from fsl.messages.versions import PROTOCOL
from fsl.privacy.reasons import failure_reason
from fsl.private_files import own_folder
from fsl.round.device_side import DeviceSide
from fsl.round.device_weights import refuse_other_counts
from fsl.round.edge_side import EdgeSide
from fsl.round.node import Node
from fsl.round.node_store import KEPT
from fsl.round.whole_model import WholeModelCohort
from fsl.round.workload import Workload
from fsl.segments.states import State
from fsl.split.placing import TOP
from fsl.wire.device.device_round import DeviceRound
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Uplink
from fsl.wire.device.moving_device_round import MovingDeviceRound
from fsl.wire.device.sealed_fronts import Relay
from fsl.wire.device.u_shaped_device_round import UShapedDeviceRound
from fsl.wire.device.u_shaped_moving_device_round import UShapedMovingDeviceRound
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.attendance import EdgeOutcome
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.expected import Expected
from fsl.wire.edge.signed_calls import PeerLines
from fsl.wire.edge.u_shaped_edge_round import UShapedEdgeRound
from fsl.wire.options import Patience
from fsl.wire.tokens import load_private_key, public_bytes

log = logging.getLogger(__name__)
_LAST_WORDS = 3.0  # seconds for the last messages of a round to leave


class NetworkedNode:
    """Hosts devices, an edge, or both; keeps its edge's door open and its devices' connections from round to round."""

    def __init__(
        self,
        workload: Workload,
        settings: NodeSettings,
        patience: Patience | None = None,
        meters: Meters | None = None,
    ):
        if settings.state is not None:
            own_folder("state", settings.state)
        self.node = Node(workload)
        self.settings = settings
        self.meters = meters or Meters()
        self.patience = replace(patience or Patience(), **settings.patience)
        self.edge_key = Ed25519PrivateKey.generate()  # signs this edge's calls to other edges and the server above it
        self.uplink: Uplink | None = None
        self._work: Work | None = None  # of the present round
        self._bare = False  # whether its last round was of a run without privacy
        self._door: EdgeDoor | None = None
        self._up: Uplink | None = None  # from this edge to the server above it
        if settings.hosts_devices and settings.key is not None:
            key = load_private_key(settings.key)
            here, devices = scratch_folder(), self.meters.devices
            self.uplink = Uplink(key, settings.device_certificates, settings.limits, devices, settings.steps, here)

    @property
    def door(self) -> EdgeDoor:
        """The door of the edge, or of the server above one; the first use opens it."""
        settings = self.settings
        if not settings.serves or settings.state is None:
            raise RunError("this node hosts no edge")
        if self._door is None:
            journal = settings.state / "sessions.tsv"
            certificates = settings.edge_certificates
            lines = PeerLines(self.edge_key, settings.device_certificates, settings.limits)
            steps, local = settings.steps_listen, scratch_folder() / f"steps-{secrets.token_hex(8)}.sock"
            meter, limits = self.meters.edge, settings.limits
            self._door = EdgeDoor(
                settings.edge, settings.listen, certificates, journal, limits, meter, lines, steps, local
            )
        return self._door

    @property
    def public_key(self) -> bytes:
        """The devices' public key, DER; empty where the node hosts none."""
        return b"" if self.uplink is None else public_bytes(self.uplink.key.public_key())

    def describe(self) -> dict[str, Any]:
        """Describe this node to the cloud, as JSON values."""
        settings, partition = self.settings, self.node.worker.workload.partition
        devices = settings.devices if settings.hosts_devices else ()
        return {
            "role": settings.role,
            "samples": {str(device): partition.size(device) for device in devices if device < partition.devices},
            "tested": 0 if (test := self.node.worker.workload.data.test) is None else len(test),
            "edge": settings.edge if settings.hosts_edge else None,
            "people": getattr(self.node.worker.workload.data, "people", ""),
            "top": settings.edge if settings.hosts_top else None,
            "address": self._address(),
            "key": self.public_key.hex(),
            "protocol": PROTOCOL,
            "version": __version__,
            "line": False,
            "frozen": {name: frozen.digest for name, frozen in self.node.frozen.items()},
            "edge_key": self.edge_key.public_key().public_bytes_raw().hex() if settings.hosts_edge else "",
        }

    def _address(self) -> str:
        if not self.settings.serves:
            return ""
        host, _, port = self.settings.address.rpartition(":")
        return f"{host}:{self.door.port if port == '0' else port}"  # 0: any free port

    def train(self, plan: RoundPlan, part: NodePart, arrays: ArrayRecord) -> Work:
        """Do this node's part of a round; TrustError, or ConfigError, for one that its owner does not allow."""
        try:
            refuse_scoring(plan)
            return self._train(plan, part, arrays)
        except Exception:
            if part.own:
                self.meters.devices.round_failed()
            raise

    def _train(self, plan: RoundPlan, part: NodePart, arrays: ArrayRecord) -> Work:
        worker = self.node.worker
        refuse_part(self.settings, plan, part, worker.workload.partition.devices)
        roams = any(edge.peers for edge in part.edges) or any(ticket.others for ticket in part.tickets)
        if worker.workload.cuts and (plan.moves or roams):
            raise ConfigError(
                "this round has devices that are cut at different places, and devices that may move; in a real "
                "federation their sessions stay at their edge"
            )
        refuse_second_hop(plan, worker, roams)
        if not scores_parties(plan):  # then tasks count test rows
            refuse_other_counts(part.own, worker.workload.partition)
        self._refuse_plain(plan)
        take_frozen(arrays, plan.frozen, self.node.frozen, filter(part.holds, self.node.layouts))
        states = record_to_states(arrays, self.node.layouts, worker.accelerator)
        work = self._work = Work()
        self._bare = plan.privacy is None or not plan.privacy.private
        moving = any(edge.peers for edge in part.edges)  # then another edge may have what is missing here
        worker.store.restarts.clear()
        worker.store.forgives = tuple(one for one in KEPT if not (moving and one == "optimizers/"))
        spent = charged(self.settings, plan, worker, [task.device for task in part.own])
        if part.alone:
            self._train_alone(plan, part, states, work)
        served = (*part.edges, *part.tops)
        edges = [threading.Thread(target=self._serve, args=(plan, part, one, states, work)) for one in served]
        for thread in edges:
            thread.start()
        if part.tickets:
            self._attend(plan, part, states, work, spent)
        for thread in edges:
            thread.join()
        self._work = None
        worker.refuse_changed()
        worker.store.sync()
        work.restarted = restarted(worker.store.restarts)
        return work

    def give_up(self, reason: str) -> None:
        """Lose all devices of the round that it works on, if any; from any thread."""
        if (work := self._work) is not None:
            work.give_up(reason)

    def evaluate(self, plan: EvaluatePlan, arrays: ArrayRecord, part: NodePart | None = None) -> MetricRecord:
        """Score this node's devices; TrustError, or ConfigError, where its owner does not allow it.

        No account covers test rows. With `rows="all"` they are the device's own, as its training rows are. Parties are
        scored together at their edge: `part` is this node's part in that.
        """
        own = plan if part is None else replace(plan, devices=part.own)
        refuse_evaluation(self.settings, own, self.node.worker.workload.partition.devices)
        if self.settings.rows == "all" and (self.settings.limit is not None or not self._bare):
            raise ConfigError(
                "this node's test rows are its own (rows='all'), and scores on them are exact; in a private run it "
                "evaluates nothing: use evaluate_every=0, or evaluate the finished fronts here"
            )
        if "own" in plan.on and not self._bare:
            raise ConfigError(
                "scores on devices' own rows are exact and in no account; in a private run this node gives none: leave "
                "evaluate_own out"
            )
        if (sessions := plan.sessions) is None:
            return self.node.evaluate(plan, arrays)
        if part is None or not self.node.worker.parties:
            raise ConfigError("this evaluation is of parties, each with its part in it; this node has none")
        refuse_sessions(plan, sessions)
        work = self._train(sessions, part, arrays)
        if work.lost:
            raise RunError("; ".join(dict.fromkeys(work.lost.values())))
        return MetricRecord(work.scored())

    def _refuse_plain(self, plan: RoundPlan) -> None:
        plain = self.settings.device_certificates is None and self.settings.edge_certificates is None
        if plan.privacy is not None and plan.privacy.private and plain:
            raise ConfigError(
                "insecure=true: this run's privacy counts on a wire that is encrypted; give the node certificates (ca, "
                "and cert and cert-key for an edge)"
            )

    def close(self) -> None:
        """Close the connections and the server."""
        if self.uplink is not None:
            self.uplink.close()
        if self._up is not None:
            self._up.close()
        if self._door is not None:
            self._door.close()

    # The edge's part, or that of the server above it.

    def _serve(self, plan: RoundPlan, whole: NodePart, part: TopPart, states: Mapping[str, State], work: Work) -> None:
        devices = [task.device for task in part.cohort.devices]
        here = f"edge {part.cohort.edge}" if isinstance(part, EdgePart) else f"the server above edge {part.cohort.edge}"
        try:
            if isinstance(part, EdgePart):
                outcome = self._serve_round(plan, whole, part, states, work)
            else:
                outcome = serve_above(part, whole, plan, self.node.worker, states, self.door, self.patience, work)
        except Exception as error:
            name = f"{here} failed"
            log.error("%s: %s: %s", name, type(error).__name__, error, exc_info=not isinstance(error, FslError))
            reason = f"{name}: {failure_reason(error, plan.privacy is not None and plan.privacy.private)}"
            if self._door is not None:  # devices that wait there are told
                admission = _admission(plan, part) if isinstance(part, EdgePart) else admission_above(plan, part)
                self._door.fail(admission, reason)
            work.lose(dict.fromkeys(devices, reason))
            return
        if outcome.failed is not None:
            log.error("%s, round %d: %s", here, plan.round, outcome.failed)
        work.lose({device: f"{here}: {reason}" for device, reason in outcome.lost.items()})
        reports = work.served if isinstance(part, EdgePart) else work.topped
        reports.extend(served_reports(plan, part.cohort.edge, outcome))

    def _serve_round(
        self, plan: RoundPlan, whole: NodePart, part: EdgePart, states: Mapping[str, State], work: Work
    ) -> EdgeOutcome:
        if self.settings.edge != part.cohort.edge:
            raise RunError(f"this node does not host edge {part.cohort.edge}")
        worker = self.node.worker
        admission = _admission(plan, part)
        if worker.parties:
            fused = vertical_round(plan, part.cohort, worker, states, admission, self.patience, self.door.meter)
            outcome = self._served(fused, whole, part, work)
            if not outcome.lost:
                work.scores.update(scores_of(fused))
            return outcome
        above = None
        if part.up is not None:
            above = remote_above(part, whole, plan, worker, self._uplink_above(), self.patience, work)
        side = EdgeSide(part.cohort, plan, worker, states, above)
        expected = Expected.of_devices(worker, plan, part.cohort.devices)
        if part.peers:
            edge_round: EdgeRound = build_moving_round(
                plan, part, side, admission, expected, self.door, self.settings, self.patience, whole.replicate_every
            )
        else:
            kind = UShapedEdgeRound if plan.tails else EdgeRound
            edge_round = kind(side.server, admission, self.patience, expected, self.door.meter)
        try:
            return self._served(edge_round, whole, part, work)
        finally:
            if above is not None:
                above.end()

    def _served(self, edge_round: EdgeRound, whole: NodePart, part: EdgePart, work: Work) -> EdgeOutcome:
        """Serve a round at the door, and add what its devices taught the edge."""
        server = edge_round.server
        edge_round.deadline = work.deadline(whole.deadline, wake=edge_round.wake)
        self.door.begin(edge_round.admission)
        try:
            outcome = edge_round.serve()
        finally:
            self.door.end(_LAST_WORDS)
        # A shared back has also learnt from devices that have moved on.
        if outcome.failed is None and (outcome.closed or part.peers):
            work.add(server.totals())
            work.arrived = tuple(server.trainer.arrived)
            work.counts.update(edge_round.counts())
        return outcome

    def _uplink_above(self) -> Uplink:
        """Returns this edge's connections to the server above it, which stay from round to round."""
        if self._up is None:
            settings, here = self.settings, scratch_folder()
            certificates, limits = settings.device_certificates, settings.limits
            self._up = Uplink(self.edge_key, certificates, limits, None, settings.steps, here)
        return self._up

    # The devices' part.

    def _train_alone(self, plan: RoundPlan, part: NodePart, states: Mapping[str, State], work: Work) -> None:
        """Train the devices without an edge."""
        meter, began = self.meters.devices, time.monotonic()
        meter.round_began(plan.round, len(part.alone))
        deadline = work.deadline(part.deadline)
        cohort = CohortTask(edge=0, devices=part.alone)
        alone = WholeModelCohort(cohort, plan, self.node.worker, states).run(deadline)
        for report in alone.reports:
            meter.device_finished(report.steps)
        for _ in alone.lost:
            meter.device_lost("deadline" if deadline.left() <= 0 else "unusable")
        work.lose({device: f"device {device}: {reason}" for device, reason in alone.lost.items()})
        work.add(alone.totals)
        work.reports.extend(alone.reports)
        work.served.extend(alone.reports)
        meter.round_ended(time.monotonic() - began)

    def _attend(
        self, plan: RoundPlan, part: NodePart, states: Mapping[str, State], work: Work, spent: RoundAccount | None
    ) -> None:
        """Train the devices; charges repeated steps before they happen."""
        if self.uplink is None:
            raise RunError("this node hosts no devices")
        worker = self.node.worker
        tasks = [ticket.task for ticket in part.tickets]
        if worker.parties:
            side: DeviceSide = the_party(tasks, plan, worker, states, work.scores)
        else:
            side = DeviceSide(tasks, plan, worker, states)
        relay = None
        if plan.fronts == "relayed":
            layouts = {name: s.layout for name, s in worker.segments.items() if name not in ("back", TOP)}
            relay = Relay(bytes.fromhex(part.relay_key), f"{plan.run}/{plan.round}", layouts)
        invitations = [
            Invitation(
                t.task.device,
                t.edge,
                self.settings.edge_addresses.get(t.edge, t.address),
                bytes.fromhex(t.token),
                plan.up.text,
                plan.down.text,
            )
            for t in part.tickets
        ]
        others = {
            t.task.device: {e: self.settings.edge_addresses.get(e, address) for e, address in t.others}
            for t in part.tickets
        }
        if any(others.values()):
            where, every = self.settings.current_edge, part.replicate_every
            again = None if spent is None else spent.again
            moving = UShapedMovingDeviceRound if plan.tails else MovingDeviceRound
            devices: DeviceRound = moving(side, invitations, self.uplink, self.patience, others, where, every, again)
        else:
            kind = UShapedDeviceRound if "tail" in side.worker.chain else DeviceRound
            devices = kind(side, invitations, self.uplink, self.patience, relay)
        devices.deadline = work.deadline(part.deadline, _LAST_WORDS)
        outcome = devices.run()
        work.lose({device: f"device {device}: {reason}" for device, reason in outcome.lost.items()})
        work.reports.extend(own_reports(side, outcome))
        if plan.fronts != "private":
            work.add(side.totals)


def _admission(plan: RoundPlan, part: EdgePart) -> Admission:
    devices = {task.device for task in (*part.cohort.devices, *(v.task for v in part.visitors))}
    key = bytes.fromhex(part.cloud_key)
    return Admission(plan.run, plan.round, part.cohort.edge, part.fence, key, devices, plan.up.text, plan.down.text)
