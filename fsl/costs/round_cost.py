"""Simulates a round's seconds and joules: a pure function of each device's work and the machines' profiles."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush, heapreplace

from fsl.argument_types import checks_types
from fsl.costs.arrivals import Again, by_arrival
from fsl.costs.profiles import DeviceProfile, LinkProfile
from fsl.costs.serving import Serving
from fsl.costs.stages import SegmentCost
from fsl.mobility import Stay


@checks_types()
@dataclass(frozen=True)
class DeviceLoad:
    """One device's measured work in one round, summed over its steps."""

    device: int
    edge: int
    steps: int
    examples: int
    up_bytes: int
    down_bytes: int
    model_bytes: int  # half goes down before the first step, half up after the last
    stays: tuple[Stay, ...] = ()  # its edges in order, if it moved; together they serve all steps
    cut: int = 0  # at which of the run's cuts it is cut, where devices are cut at different places
    hop_up_bytes: int = 0  # between its edge and the server above
    hop_down_bytes: int = 0
    merges: int = 1  # how often it fetched and delivered the model, where fronts are merged as they come


@dataclass(frozen=True)
class DeviceCost:
    """One device's part in a round. `seconds`: from the round's start until its model is back.

    `done_s`: until nothing of its work is left to do, at its edge either. A device that is late stops at the deadline:
    its figures are of what it did until then.
    """

    device: int
    seconds: float
    compute_s: float
    up_s: float
    down_s: float
    joules: float | None
    moving_s: float = 0.0  # seconds in which its session moved between edges
    done_s: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    model_bytes: int = 0


@dataclass(frozen=True)
class RoundCost:
    """A round: `seconds` until the slowest device (or edge) is done, `joules` of all devices until then."""

    seconds: float
    joules: float | None
    devices: tuple[DeviceCost, ...]

    @property
    def moving_s(self) -> float:
        """Seconds that devices waited for their sessions to move, summed over devices."""
        return sum(device.moving_s for device in self.devices)


@dataclass(frozen=True)
class Legs:
    """FLOPs of one sample by leg of a step: on the device before each visit to the edge, there, and after the last.

    `above`: at a server above the edge, whose answer the one visit waits for.
    """

    before: tuple[float, ...]
    edge: tuple[float, ...]
    after: float
    above: float = 0.0


def legs(segments: Sequence[SegmentCost]) -> Legs:
    """Add up one step through segments that begin on the device: forward to the loss behind the last, and back."""
    last = segments[-1]
    walk = [(s.place, s.forward_flops) for s in segments[:-1]]
    walk.append((last.place, last.forward_flops + last.backward_flops))
    walk += [(s.place, s.backward_flops) for s in reversed(segments[:-1])]
    above = sum(flops for place, flops in walk if place == "cloud")
    merged: list[tuple[str, float]] = []
    for place, flops in walk:
        if place == "cloud":
            continue
        if merged and merged[-1][0] == place:
            flops += merged.pop()[1]
        merged.append((place, flops))
    device = [flops for place, flops in merged if place == "device"]
    return Legs(tuple(device[:-1]), tuple(flops for place, flops in merged if place == "edge"), device[-1], above)


@checks_types()
def round_cost(
    loads: Iterable[DeviceLoad],
    serving: Serving,
    segments: Sequence[SegmentCost],
    devices: Mapping[int, DeviceProfile],
    links: Mapping[int, LinkProfile],
    edges: Mapping[int, DeviceProfile],
    start: float = 0.0,
    backhaul: LinkProfile | None = None,
    by_cut: Sequence[Sequence[SegmentCost]] = (),
    late: Collection[int] = (),
    deadline: float = math.inf,
) -> RoundCost:
    """Simulate a round that begins at second `start` of the run; profiles are by id of device and edge.

    `by_cut`: where devices are cut at different places, the segments for each cut, of which a device's load names one.

    Every step of a device counts the average rows and bytes of its steps. A moving session takes its bytes' time over
    `backhaul`, and its device opens a new connection. In lockstep and in turn a device's steps are priced at the edge
    where its round began. A step of two hops holds its edge's slot until the server above has answered, which is as
    fast as the edge and speaks with it over `backhaul`.

    Devices that are `late` work until `deadline`, seconds after the start, at which the round is closed for them: in an
    edge's queue with the others, and where a back is shared each for itself, since nobody waits for them there.
    """
    steps = [legs(one) for one in by_cut or (segments,)]
    if serving.kind == "none":
        steps = [Legs((), (), sum(s.forward_flops + s.backward_flops for s in one)) for one in by_cut or (segments,)]
    parties = [
        _Party(
            load,
            steps[load.cut],
            devices[load.device],
            links[load.device],
            edges,
            serving.passes,
            start,
            backhaul,
            start + deadline if load.device in late else math.inf,
        )
        for load in sorted(loads, key=lambda load: load.device)
    ]
    alone = set(late) if serving.shared else set()  # nobody waits for them
    for party in parties:
        if party.device in alone:
            party.fetch()
            _queue([party], {party.load.edge: 1})
            party.deliver()
    _serve([party for party in parties if party.device not in alone], serving, edges, start)
    counted = [party for party in parties if party.device not in late]
    ends = [*(party.now for party in counted), *(party.served_by for party in counted)]
    if len(counted) < len(parties):
        ends.append(start + deadline)
    seconds = max(ends, default=start) - start
    costs = tuple(party.cost(start, seconds) for party in parties)
    known = [cost.joules for cost in costs if cost.joules is not None]
    return RoundCost(seconds, sum(known) if len(known) == len(costs) else None, costs)


def _serve(parties: Sequence["_Party"], serving: Serving, edges: Mapping[int, DeviceProfile], start: float) -> None:
    """Let devices, in order of id, fetch the model, train as edges serve them, and deliver it."""
    cohorts = _by_edge(parties)
    if serving.kind == "turn":
        for cohort in cohorts.values():
            _in_turn(cohort, serving.relayed, start)
        return
    if serving.kind == "arrival":
        merges = {party.device: party.load.merges for party in parties}
        for cohort in cohorts.values():
            by_arrival(cohort, start, lambda device, merged, waited_for: merged < merges[device])
        return
    for party in parties:
        party.fetch()
    slots = {edge: profile.slots for edge, profile in edges.items()}
    if serving.kind == "queue":
        _queue(parties, slots)
    elif serving.kind == "stream":
        _stream(parties, slots, start)
    elif serving.kind == "lockstep":
        for cohort in cohorts.values():
            _lockstep(cohort, serving.window)
    else:
        for party in parties:
            party.finish(party.load.steps)
    for party in parties:
        party.deliver()


def arrival_orders(
    loads: Iterable[DeviceLoad],
    again: Again,
    serving: Serving,
    segments: Sequence[SegmentCost],
    devices: Mapping[int, DeviceProfile],
    links: Mapping[int, LinkProfile],
    edges: Mapping[int, DeviceProfile],
    start: float = 0.0,
) -> dict[int, tuple[int, ...]]:
    """Returns, by edge, the order in which uploads and fronts will arrive in a round that begins at second `start`.

    Arguments as for `round_cost`, which prices such a round by the same events; loads are of one pass each.
    """
    step = legs(segments)
    parties = [
        _Party(load, step, devices[load.device], links[load.device], edges, serving.passes, start, None)
        for load in sorted(loads, key=lambda load: load.device)
    ]
    return {edge: by_arrival(cohort, start, again) for edge, cohort in _by_edge(parties).items()}


class _Party:
    """A device on its way through a round; `now` is the second of the run that it has reached."""

    def __init__(
        self,
        load: DeviceLoad,
        step: Legs,
        device: DeviceProfile,
        link: LinkProfile,
        edges: Mapping[int, DeviceProfile],
        passes: float,
        start: float,
        backhaul: LinkProfile | None,
        until: float = math.inf,
    ):
        rows = load.examples / load.steps if load.steps else 0.0
        self.load, self.profile, self.link = load, device, link
        self.device, self.steps = load.device, load.steps // load.merges  # steps: of each pass
        self.model_size = load.model_bytes / (2 * load.merges)
        self.before = [rows * flops / device.flops_per_second for flops in step.before]
        self.stays = list(load.stays) or [Stay(load.edge, load.steps)]
        self.served = {
            stay.edge: [rows * flops * passes / edges[stay.edge].flops_per_second for flops in step.edge]
            for stay in (*self.stays, Stay(load.edge, 0))
        }
        if step.above and backhaul is not None:
            above = rows * step.above * passes / edges[load.edge].flops_per_second
            self.served[load.edge][0] += above + self._hop_seconds(backhaul, start)
        self.edge, self.service = load.edge, self.served[load.edge]
        self.backhaul = backhaul
        self.moving_s = 0.0
        self.after = rows * step.after / device.flops_per_second
        self.now = start
        self.served_by = start  # the second at which an edge that it does not wait for has served all of it
        self.until = until  # the second at which it stops
        self.up_s = self.down_s = self.computed_s = 0.0
        self.sent = self.heard = self.model = 0.0  # bytes until it stops
        transfers = max(1, load.steps * len(self.service))
        self.up_size, self.down_size = load.up_bytes / transfers, load.down_bytes / transfers
        # Without a trace equal transfers take equally long, and a round has tens of thousands.
        self.up_fixed = None if link.trace else link.seconds(self.up_size, link.up_mbit, start)
        self.down_fixed = None if link.trace else link.seconds(self.down_size, link.down_mbit, start)

    def _hop_seconds(self, backhaul: LinkProfile, start: float) -> float:
        """Returns the seconds of a step's way to the server above and back, at the rates of the round's start."""
        steps = max(1, self.load.steps)
        ways = ((self.load.hop_up_bytes, backhaul.up_mbit), (self.load.hop_down_bytes, backhaul.down_mbit))
        return sum(backhaul.seconds(size / steps, rate, start) + backhaul.latency_s for size, rate in ways)

    def upload(self, visit: int) -> float:
        """Compute up to the edge's `visit`, and send; returns the second at which the edge has it all."""
        self._compute(self.before[visit])
        taken = self.up_fixed
        if taken is None:
            taken = self.link.seconds(self.up_size, self.link.up_mbit, self.now)
        share = self._share(self.now, taken)
        self.up_s += taken * share
        self.sent += self.up_size * share
        self.now += taken
        return self.now + self.link.latency_s

    def download(self, sent: float, count: int = 1) -> None:
        """Receive `count` replies, one behind the other, which the edge began to send at second `sent`."""
        for _ in range(count):
            taken = self.down_fixed
            if taken is None:
                taken = self.link.seconds(self.down_size, self.link.down_mbit, sent)
            share = self._share(sent, taken)
            self.down_s += taken * share
            self.heard += self.down_size * share
            sent += taken
        self.now = sent + self.link.latency_s

    def finish(self, steps: int = 1) -> None:
        """Compute what comes after the last visit to the edge, of so many steps."""
        self._compute(steps * self.after)

    def _compute(self, seconds: float) -> None:
        self.computed_s += seconds * self._share(self.now, seconds)
        self.now += seconds

    def _share(self, begin: float, seconds: float) -> float:
        """Returns how much of something that begins then, and takes so long, it does before it stops."""
        if begin + seconds <= self.until:
            return 1.0
        return max(0.0, self.until - begin) / seconds if seconds else 0.0

    def fetch(self) -> None:
        """Receive the model."""
        if self.load.model_bytes:
            taken = self.link.seconds(self.model_size, self.link.down_mbit, self.now)
            self.down_s += taken * self._share(self.now, taken)
            self.model += self.model_size * self._share(self.now, taken)
            self.now += taken + self.link.latency_s

    def deliver(self) -> None:
        """Send the model back."""
        if self.load.model_bytes:
            taken = self.link.seconds(self.model_size, self.link.up_mbit, self.now)
            self.up_s += taken * self._share(self.now, taken)
            self.model += self.model_size * self._share(self.now, taken)
            self.now += taken + self.link.latency_s

    def cost(self, start: float, round_s: float) -> DeviceCost:
        """Returns its cost; it idles, at idle power, whenever it does not compute, until the round ends for all."""
        late = not math.isinf(self.until)
        compute = self.computed_s if late else self.load.steps * (sum(self.before) + self.after)
        powers = [
            (self.profile.power_active_watts, compute),
            (self.profile.power_idle_watts, max(0.0, round_s - compute)),
            (self.link.transmit_watts, self.up_s),
            (self.link.receive_watts, self.down_s),
        ]
        joules: float | None = 0.0
        for watts, seconds in powers:
            if seconds:
                joules = None if joules is None or watts is None else joules + watts * seconds
        sizes = (self.sent, self.heard, self.model)
        sizes = sizes if late else (self.load.up_bytes, self.load.down_bytes, self.load.model_bytes)
        ended = min(self.now, self.until) - start
        done = min(max(self.now, self.served_by), self.until) - start
        spent = (ended, compute, self.up_s, self.down_s, joules, self.moving_s, done)
        return DeviceCost(self.load.device, *spent, *(round(size) for size in sizes))

    def follow(self) -> None:
        """Move the session after a served upload, before the device hears of it, if that was the last at its edge."""
        self.stays[0] = replace(self.stays[0], uploads=self.stays[0].uploads - 1)
        if self.stays[0].uploads > 0 or len(self.stays) == 1:
            return
        self.stays.pop(0)
        to = self.stays[0]
        self.edge, self.service = to.edge, self.served[to.edge]
        taken = 2 * self.link.latency_s  # to open a session there
        if to.bytes and self.backhaul is not None:
            taken += self.backhaul.seconds(to.bytes, self.backhaul.up_mbit, self.now) + 2 * self.backhaul.latency_s
        self.moving_s += taken
        self.now += taken


def _by_edge(parties: Iterable[_Party]) -> dict[int, list[_Party]]:
    cohorts: dict[int, list[_Party]] = {}
    for party in parties:
        cohorts.setdefault(party.load.edge, []).append(party)
    return cohorts


def _queue(parties: Sequence[_Party], slots: Mapping[int, int]) -> None:
    """Serve uploads in order of arrival, each when a slot of its edge is free."""
    by_id = {party.load.device: party for party in parties}
    free = {edge: [0.0] * count for edge, count in slots.items()}
    arrivals = [(p.upload(0), p.load.device, 0, 0) for p in parties if p.load.steps]
    heapify(arrivals)
    while arrivals:
        arrival, device, step, visit = heappop(arrivals)
        party = by_id[device]
        servers = free[party.edge]
        done = max(arrival, servers[0]) + party.service[visit]
        heapreplace(servers, done)
        party.download(done)
        if visit + 1 < len(party.service):
            heappush(arrivals, (party.upload(visit + 1), device, step, visit + 1))
            continue
        party.follow()
        party.finish()
        if step + 1 < party.load.steps:
            heappush(arrivals, (party.upload(0), device, step + 1, 0))


def _in_turn(cohort: Sequence[_Party], relayed: bool, start: float) -> None:
    free = start  # second at which the edge turns to the next device
    for party in cohort:
        if relayed:
            party.now = free
        party.fetch()
        party.now = max(party.now, free)
        _queue([party], {party.load.edge: 1})
        free = party.now
        party.deliver()
        if relayed:
            free = party.now


def _lockstep(cohort: Sequence[_Party], window: int) -> None:
    left = {party.load.device: party.load.steps for party in cohort}
    while live := [party for party in cohort if left[party.load.device]]:
        counts = [min(window, left[party.load.device]) for party in live]
        for visit in range(len(live[0].service)):
            arrived = max([party.upload(visit) for party, count in zip(live, counts) for _ in range(count)])
            done = arrived + sum(party.service[visit] * count for party, count in zip(live, counts))
            for party, count in zip(live, counts):
                party.download(done, count)
        for party, count in zip(live, counts):
            for _ in range(count):
                party.follow()
                party.edge, party.service = party.load.edge, party.served[party.load.edge]
            party.finish(count)
            left[party.load.device] -= count


def _stream(parties: Sequence[_Party], slots: Mapping[int, int], start: float) -> None:
    """Let devices go on at once, and the edges work off what they uploaded."""
    by_id = {party.load.device: party for party in parties}
    arrivals = []
    for party in parties:
        for _ in range(party.load.steps):
            arrivals.append((party.upload(0), party.load.device, party.edge, sum(party.service)))
            party.follow()
            party.finish()
    free = {edge: [start] * count for edge, count in slots.items()}
    for arrival, device, edge, service in sorted(arrivals):
        done = max(arrival, free[edge][0]) + service
        heapreplace(free[edge], done)
        by_id[device].served_by = max(by_id[device].served_by, done)
