"""Trains cohorts side by side in one process while devices move between their edges."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from fsl.codecs.codec_maker import CANNOT_MOVE, CANNOT_MOVE_TAILS
from fsl.errors import ConfigError, LostError
from fsl.messages.reports import CohortResult, DeviceReport
from fsl.messages.round_plan import CohortTask, RoundPlan
from fsl.messages.steps import ReplyPacket, TailAnswer, TailCall, UploadPacket
from fsl.mobility import Move, route
from fsl.round.cohort import closed, result_of, stepping, train
from fsl.round.device_side import DeviceSide
from fsl.round.edge_server import EdgeServer
from fsl.round.edge_side import EdgeSide
from fsl.round.front_device import Device
from fsl.round.handover import Passport, hand_over
from fsl.round.trainer_memory import KEPT_CANNOT_MOVE
from fsl.round.unusable import lost_reason
from fsl.round.workload import Worker
from fsl.segments.states import State
from fsl.segments.sums import Total, merge_totals


class Roamer:
    """One device on its way through a round: its present edge, and its next ones."""

    def __init__(self, device: Device, edge: EdgeServer, moves: Sequence[Move], steps: int):
        self.device = device
        self.edge = edge
        self.left = route(edge.edge, moves, steps)  # (uploads done, edge)
        self.moves = 0
        self.moved_bytes = 0
        self.wasted = Counter[str]()  # repeated steps, and their bytes
        self.gone = False
        self.deaf = False  # whether it ignores the reply to its newest upload, since it begins again or is gone

    def heard(self, reply: ReplyPacket) -> ReplyPacket:
        """Returns the reply for the device: after a move the newest one came over with the session."""
        pending = self.edge.session(self.device.device).pending
        return pending if pending is not None and pending.step == reply.step else reply

    def due(self) -> bool:
        """Returns whether it leaves now, after the reply to its newest upload."""
        return bool(self.left) and self.device.step >= self.left[0][0] and self.edge.caught_up(self.device.device)


class MovingCohorts:
    """Trains cohorts whose devices may move between them, with the edges of all."""

    def __init__(self, tasks: Sequence[CohortTask], plan: RoundPlan, worker: Worker, states: Mapping[str, State]):
        self.tasks = tasks
        self.plan = plan
        self.worker = worker
        self.states = states
        self.devices = DeviceSide([d for task in tasks for d in task.devices], plan, worker, states)
        self.sides = {task.edge: EdgeSide(task, plan, worker, states) for task in tasks}
        self.dropped: list[int] = []
        self.lost: dict[int, str] = {}
        self._moves: dict[int, list[Move]] = {}
        for move in plan.moves:
            self._moves.setdefault(move.device, []).append(move)
        for way, spec, make in (("up", plan.up, self.devices.up), ("down", plan.down, self.devices.down)):
            if not make().movable:
                raise ConfigError(f"codec.{way}={spec.text}: {CANNOT_MOVE}")
            if make().stateful and plan.tails:
                raise ConfigError(f"codec.{way}={spec.text}: {CANNOT_MOVE_TAILS}")
        for side in self.sides.values():
            trainer, kind = side.server.trainer, type(side.server.trainer).__name__
            if trainer.keeps and trainer.divisible:
                raise ConfigError(f"{kind} {KEPT_CANNOT_MOVE}")
            if plan.fronts == "relayed" or not trainer.movable:
                raise ConfigError(f"devices cannot move in the middle of a round of {kind}; use mobility=none")

    _tails: "Callable[[Sequence[TailCall]], Sequence[TailAnswer]] | None" = None  # of U-shaped splits

    def run(self) -> CohortResult:
        """Train every device of the cohorts once."""
        first = next(iter(self.sides.values())).server.trainer
        if first.lockstep:
            groups = [[(task.edge, d.device) for task in self.tasks for d in task.devices]]
        else:
            groups = [[(t.edge, device)] for t in self.tasks for device in first.arrange([d.device for d in t.devices])]
        reports = [report for group in groups for report in self._run_group(group)]
        totals: dict[str, Total] = {}
        counts: Counter[str] = Counter(dropped=len(self.dropped))
        for side in self.sides.values():
            found, own = result_of(side.server, reports, self.lost)
            counts.update(own)
            merge_totals(totals, found)
        if not reports:
            return CohortResult(totals={}, reports=(), counts={}, lost=self.lost)
        if self.plan.fronts != "private":
            merge_totals(totals, self.devices.totals)
        return CohortResult(
            totals=totals, reports=tuple(sorted(reports, key=lambda r: r.device)), counts=counts, lost=self.lost
        )

    def _run_group(self, group: Sequence[tuple[int, int]]) -> Iterable[DeviceReport]:
        roamers = [self._begin(self._server(edge), device) for edge, device in group]
        if any(roamer.left for roamer in roamers) or len(roamers) > 1:
            self._train(roamers)
        else:
            lost = train([roamers[0].device], roamers[0].edge, self.plan)
            if lost:
                self._lost(roamers[0], lost[roamers[0].device.device])
        for roamer in roamers:
            if roamer.gone:
                continue
            try:
                report = closed(self.devices, roamer.device, roamer.edge)
            except LostError as error:
                self._lost(roamer, error.reason)
                continue
            yield self._report(roamer, report)

    def _lost(self, roamer: Roamer, reason: str) -> None:
        """Drop a device whose work is unusable."""
        device = roamer.device.device
        roamer.gone = roamer.deaf = True
        roamer.edge.lose(device)
        self.devices.abandon(roamer.device)
        self.lost[device] = lost_reason(self.plan, reason)

    def _begin(self, edge: EdgeServer, device: int) -> Roamer:
        opened = self.devices.open(device)
        edge.open(device, self.devices.samples(device), self.devices.weight(device))
        return Roamer(opened, edge, self._moves.get(device, ()), len(self.devices.batches[device].rows))

    def _train(self, roamers: Sequence[Roamer]) -> None:
        """Run the training loop: each device uploads a step, its edge answers; a due device moves before it hears."""
        by_id = {roamer.device.device: roamer for roamer in roamers}
        self._tails = lambda calls: [by_id[call.device].device.end(call) for call in calls]
        for side in self.sides.values():
            side.server.tails = self._tails
        with stepping(self.plan) as at:
            while True:
                uploads: dict[int, list[UploadPacket]] = {}
                for roamer in roamers:
                    if roamer.gone:
                        continue
                    at(roamer.device.device, roamer.device.step)
                    try:
                        if (packet := roamer.device.forward()) is not None:
                            uploads.setdefault(roamer.edge.edge, []).append(packet)
                    except LostError as error:
                        self._lost(roamer, error.reason)
                replies: list[ReplyPacket] = []
                for edge, side in list(self.sides.items()):
                    if edge in uploads:
                        replies += side.server.step(uploads[edge])
                    elif not uploads:
                        replies += side.server.flush()
                for side in list(self.sides.values()):
                    for number, reason in side.server.refused().items():
                        self._lost(by_id[number], reason)
                self._leave([by_id[p.device] for packets in uploads.values() for p in packets])
                for reply in replies:
                    roamer = by_id[reply.device]
                    if not roamer.deaf:
                        at(reply.device, reply.step)
                        try:
                            roamer.device.backward(roamer.heard(reply))
                        except LostError as error:
                            self._lost(roamer, error.reason)
                if not uploads:
                    break
            for roamer in roamers:
                if not roamer.gone:
                    roamer.device.finish()

    def _leave(self, roamers: Sequence[Roamer]) -> None:
        """Move the devices that are due."""
        for roamer in roamers:
            if roamer.gone:
                continue
            roamer.deaf = False
            if not roamer.due():
                continue
            _, edge = roamer.left.pop(0)
            if self.plan.on_move == "migrate":
                self._migrate(roamer, self._server(edge))
            else:
                roamer.deaf = True
                self._give_up(roamer, edge)

    def _migrate(self, roamer: Roamer, to: EdgeServer) -> None:
        device = roamer.device.device
        assert self.plan.trainer is not None
        passport = Passport(self.plan.run, self.plan.round, device, self.plan.trainer.target)
        layout = self.devices.view(device).worker.segments["back"].layout
        self.sides[to.edge].welcome(self.devices.tasks[device])
        roamer.moved_bytes += hand_over(roamer.edge, to, passport, layout)
        roamer.edge = to
        roamer.moves += 1

    def _give_up(self, roamer: Roamer, edge: int) -> None:
        """End a device's session at its edge; with `restart` it begins the round again at the other edge."""
        device = roamer.device.device
        session = roamer.edge.session(device)
        spent = {"up_bytes": session.up_bytes, "down_bytes": session.down_bytes}
        roamer.wasted.update(steps=session.step, times=1, **spent)
        roamer.edge.lose(device)
        self.devices.abandon(roamer.device)
        if self.plan.on_move == "drop":
            roamer.gone = True
            self.dropped.append(device)
            return
        to = self._server(edge)
        self.sides[edge].welcome(self.devices.tasks[device])
        roamer.device = self.devices.open(device)
        to.open(device, self.devices.samples(device), self.devices.weight(device))
        roamer.edge = to
        roamer.moves += 1

    def _server(self, edge: int) -> EdgeServer:
        """Returns an edge's server; begins one without a cohort here when the first device comes to it."""
        if edge not in self.sides:
            self.sides[edge] = EdgeSide(CohortTask(edge=edge, devices=()), self.plan, self.worker, self.states)
            self.sides[edge].server.tails = self._tails
        return self.sides[edge].server

    def _report(self, roamer: Roamer, report: DeviceReport) -> DeviceReport:
        wasted = roamer.wasted
        return replace(
            report,
            up_bytes=report.up_bytes + wasted["up_bytes"],
            down_bytes=report.down_bytes + wasted["down_bytes"],
            edge=roamer.edge.edge,
            moves=roamer.moves,
            moved_bytes=roamer.moved_bytes,
            wasted_steps=wasted["steps"],
            restarts=wasted["times"],
        )
