"""Base of an algorithm's cloud half: its decisions each round, and its memory from round to round."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

from flwr.app import ArrayRecord
from fsl.strategies import asked
from fsl.strategies.forecasts import Forecasts
from fsl.strategies.participation import Participation
from fsl.strategies.protection import Protection
from fsl.strategies.step_settings import base_rate, refuse_stepping, told_loss
from torch import Tensor, nn

from fsl.errors import ConfigError, RunError, one_of
from fsl.flower.aggregation import Aggregator
from fsl.flower.records import record_to_states
from fsl.gapped_range import GappedRange
from fsl.importing.import_paths import path_of
from fsl.importing.spec import Spec
from fsl.messages.reports import DeviceReport
from fsl.messages.round_plan import CohortTask, Fronts
from fsl.mobility import Move, OnMove, moves_of
from fsl.round.front_device import Device, LocalLossDevice
from fsl.round.trainer_memory import KEPT, KEPT_CANNOT_MOVE
from fsl.run.generations import Generations
from fsl.segments.states import State
from fsl.segments.sums import Total, WeightedSum
from fsl.settings.federation_settings import Federation
from fsl.settings.taking_part import may_have_fewer, predicts
from fsl.split.cutting import refuse_tail
from fsl.split.placing import TOP, refuse_top

Part = TypeVar("Part")


class Algorithm:
    """An algorithm's cloud half: it decides about each round, and remembers state between rounds.

    `fronts`: "averaged" (one front for all), "private" (each device keeps its own, on its node) or "relayed" (each
    device starts from the one before).
    """

    fronts: Fronts = "averaged"
    on_move: OnMove = "migrate"  # what happens to a device's round when the device moves within it
    local_loss: bool = False  # devices train by their own loss, with a `head` from the strategy

    def __init__(self) -> None:
        self._federation: Federation | None = None
        self._protected_by: Protection | None = None
        self._taken_part: Participation | None = None
        self._aggregator: Aggregator | None = None
        self._versions = Generations()  # of "device-<id>" and "edge-<id>", whose states are kept on nodes
        self._kept = Generations()  # of "<trainer>/edge-<id>" or "/device-<id>"
        self._clock = 0.0  # simulated seconds of the rounds so far
        self._losses: list[float] = []  # of the evaluations so far, where the learning rate follows them

    # Hooks that an algorithm overrides.

    def trainer(self, round: int) -> Spec | None:
        """Returns the edge trainer of this round; None trains the whole model on the devices."""
        raise NotImplementedError(f"{type(self).__name__} must say which edge trainer it uses")

    def device_rule(self, round: int) -> Spec:
        """Returns the device half of this round."""
        return Spec(self.path(LocalLossDevice if self.local_loss else Device))

    def head(self, smashed: Tensor, outputs: Tensor) -> nn.Module:
        """Returns, for `local_loss`, a small head from smashed data (B, ...) to outputs (B, ...) like the model's."""
        raise NotImplementedError(f"{type(self).__name__} has local_loss = True and must say what head devices train")

    def select(self, round: int) -> Sequence[int]:
        """The devices of this round, of those that are `available`, as the run's selection chooses them."""
        return self._participation.select(round, self._held(), partial(self._forecasts.seconds, round, self._clock))

    def available(self, round: int) -> Sequence[int]:
        """Returns the devices that are there in this round, in order of id, as the run's availability says."""
        return self._participation.available(round)

    @property
    def selects_itself(self) -> bool:
        """Whether an algorithm overrides `select`; then the run's selection cannot be another than the default."""
        return type(self).select is not Algorithm.select

    def chosen(self, round: int) -> list[int]:
        """What `select` chose of the devices that are available, in order of id; RunError where that cannot train."""
        own, devices = self.selects_itself, self.federation.training.devices
        name = self._hook("select") if own else self._participation.name
        there = self.available(round)
        found = asked.devices_of(round, name, self.select(round), devices, none=not own) if there else []
        known = there if isinstance(there, range | GappedRange) else set(there)
        absent = [device for device in found if device not in known]
        if absent and not own:
            raise RunError(
                f"round {round}: {name} chose device {absent[0]}, which is not available; choose of candidates.devices"
            )
        return [device for device in found if device in known]

    def edge_of(self, device: int) -> int:
        """The edge that a device is attached to."""
        return device % self.federation.training.edges

    def home(self, device: int, round: int) -> int:
        """Returns the edge to which a device is attached when this round starts."""
        mobility = self.federation.mobility
        home = None if mobility is None else mobility.home(device, round)
        return self.edge_of(device) if home is None else home

    def attached(self, device: int, round: int) -> int:
        """Check the edge of `home`, and return it; RunError for an edge that does not exist."""
        home, mobility = self.home(device, round), self.federation.mobility
        name = self._hook("edge_of" if type(self).home is Algorithm.home else "home")
        if type(self).home is Algorithm.home and mobility is not None and mobility.home(device, round) is not None:
            name = f"{type(mobility).__name__}.home()"
        return asked.edge_of(round, name, device, home, self.federation.training.edges)

    def moves(self, round: int, devices: Sequence[int]) -> Sequence[Move]:
        """The moves between edges within this round, by the run's mobility model."""
        training, home = self.federation.training, partial(self.attached, round=round)
        return moves_of(self.federation.mobility, round, devices, home, training.edges, training.seed)

    def learning_rates(self, round: int) -> Mapping[str, float]:
        """Returns each segment's learning rate in this round."""
        federation = self.federation
        return dict.fromkeys(federation.layouts, base_rate(federation, round, self._losses))

    def combine(self, round: int, totals: Mapping[str, Total], previous: ArrayRecord) -> dict[str, State]:
        """Returns the segments' new states, from the devices' totals and the arrays that they started from.

        The run's aggregator, if any, combines segments of which each device has its own; the others are means.
        """
        new: dict[str, State] = {}
        shared = totals
        if self._aggregator is not None:
            own = {name: total for name, total in totals.items() if self._per_device(name, round)}
            shared = {name: total for name, total in totals.items() if name not in own}
            start = record_to_states(previous, {name: self.federation.layouts[name] for name in own})
            new = self._aggregator.combine(round, own, self.federation.layouts, start) if own else {}
        return new | self._protection.means(
            round, {n: total for n, total in shared.items() if isinstance(total, WeightedSum)}
        )

    def metrics(self, round: int, reports: Sequence[DeviceReport], counts: Mapping[str, int]) -> dict[str, float]:
        """Returns additional metrics of the round, from the devices' reports and the edges' counts."""
        return {}

    def _scored(self, metrics: Mapping[str, Any]) -> None:
        """Note what a round's evaluation found, where the learning rate follows it."""
        self._losses += told_loss(self.federation, metrics)

    # Checked answers of the hooks.

    def planned(self, round: int) -> Spec | None:
        """Check the description of `trainer`, and return it; RunError for an invalid one."""
        return asked.spec_of(round, self._hook("trainer"), self.trainer(round), optional=True)

    def _rates(self, round: int) -> dict[str, float]:
        """Check `learning_rates`, and return a number for each segment."""
        one = self.planned(round) is None or self.federation.cuts is not None
        return asked.rates_of(
            round, self._hook("learning_rates"), self.learning_rates(round), self.federation.layouts, one
        )

    def _held(self) -> Mapping[int, int] | None:
        """Returns the n_k of the devices that are online, where nodes host fixed ones; None in a simulation."""
        return None

    def _hook(self, name: str) -> str:
        return f"{type(self).__name__}.{name}()"

    # Helpers for subclasses.

    @staticmethod
    def path(kind: type) -> str:
        """Returns a class's import path, as a plan names it."""
        return path_of(kind)

    @property
    def _protection(self) -> Protection:
        """What the run's privacy does at the cloud; RunError before `bind`."""
        return self._bound(self._protected_by)

    @property
    def _participation(self) -> Participation:
        """Who takes part in the run's rounds; RunError before `bind`."""
        return self._bound(self._taken_part)

    @property
    def _forecasts(self) -> Forecasts:
        """What is foreseen of the run's rounds."""
        return Forecasts(self.federation, self.fronts, self.planned, self.attached)

    @property
    def federation(self) -> Federation:
        """Settings of the run."""
        return self._bound(self._federation)

    def _bound(self, part: Part | None) -> Part:
        if part is None:
            raise RunError(f"{type(self).__name__} has no run yet: call bind(federation) before start")
        return part

    def bind(self, federation: Federation) -> None:
        """Take the run's settings, and forget an earlier run."""
        self._federation = federation
        self._protected_by = Protection(federation)
        self._taken_part = Participation(federation)
        self._versions, self._kept = Generations(), Generations()
        self._clock, self._losses = 0.0, []
        refuse_stepping(federation, self.planned, self.device_rule, type(self).__name__)
        for name, allowed in (("fronts", get_args(Fronts)), ("on_move", get_args(OnMove))):
            one_of(f"{type(self).__name__}.{name}", getattr(self, name), allowed)
        asked.spec_of(1, self._hook("device_rule"), self.device_rule(1))
        self._refuse_tail()
        self._refuse_moves()
        self._refuse_cuts()
        self._forecasts.refuse_short_deadline()
        self._refuse_merging()
        self._refuse_hops()
        self._aggregator = None if federation.aggregator is None else Aggregator(federation.aggregator)
        if self._aggregator is None:
            return
        if not any(self._per_device(name, 1) for name in federation.layouts):
            raise ConfigError(
                f"aggregator={type(federation.aggregator).__name__}: {type(self).__name__} averages nothing over "
                "devices, so there is nothing that it could act on; use aggregator=mean, or another strategy"
            )
        self._aggregator.refuse_too_few(federation.training.devices_per_round or federation.training.devices)
        self._aggregator.refuse_fewer(
            may_have_fewer(federation.training, federation.selection, federation.availability)
        )

    def _refuse_tail(self) -> None:
        """Raise ConfigError where the model has a segment that nobody would train."""
        spec, federation = self.planned(1), self.federation
        if spec is None:
            return
        trainer = spec.build()
        if not trainer.hops:
            refuse_top(federation.layouts, f"{type(self).__name__} trains")
        if TOP in federation.layouts and (federation.mobility is not None or self._may_move()):
            raise ConfigError(
                "mobility: a device that moves takes its session along, and in a split with two hops a part of it is "
                "at the cloud; use mobility=none and deployment.roaming=false, or one cut"
            )
        if not trainer.tails:
            refuse_tail(self.federation.layouts, f"{type(self).__name__} trains")

    def _may_move(self) -> bool:
        """Whether sessions of a real federation may go to another edge."""
        placement = self.federation.placement
        return placement is not None and (self.federation.mobility is not None or getattr(placement, "roams", False))

    def _refuse_hops(self) -> None:
        """Raise ConfigError where a round's time is to be predicted whose second hop no forecast has."""
        if TOP in self.federation.layouts and predicts(self.federation.training, self.federation.selection):
            raise ConfigError(
                "deadline, or a selection by seconds: no forecast of a round has the way to a server above the edges; "
                "leave it out, or give one cut"
            )

    def _refuse_merging(self) -> None:
        """Raise ConfigError where fronts would be merged as they come and uploads not taken so, or the reverse."""
        spec = self.planned(1)
        taken = spec is not None and spec.build().asynchronous
        if taken != (self.fronts == "merged"):
            raise ConfigError(
                f"{type(self).__name__}.fronts={self.fronts!r}: an asynchronous edge trainer, and no other, merges "
                'fronts (fronts="merged"); use fsl.strategies.AsyncSL, or other fronts'
            )

    def _refuse_moves(self) -> None:
        """Raise ConfigError where devices would move that cannot."""
        if self.federation.mobility is None:
            return
        name, spec = type(self).__name__, self.planned(1)
        trainer = None if spec is None else spec.build()
        if trainer is not None and trainer.keeps and trainer.divisible:
            raise ConfigError(f"mobility: the trainer of {name} {KEPT_CANNOT_MOVE}")
        if trainer is None or not trainer.movable or self.fronts == "relayed":
            raise ConfigError(f"mobility: devices of {name} cannot move in the middle of a round; use mobility=none")
        if self.on_move == "restart" and not trainer.divisible:
            raise ConfigError(
                f"on_move=restart: devices of {name} share a back, which has learnt from the steps that would be done "
                "again; use on_move=migrate or drop"
            )

    def _refuse_cuts(self) -> None:
        """Raise ConfigError where devices are cut at different places and cannot be, beside the other settings."""
        federation, name, spec = self.federation, type(self).__name__, self.planned(1)
        if federation.cuts is None:
            return
        if spec is None:
            raise ConfigError(f"cuts: {name} trains the whole model on the devices, without a cut; leave cuts out")
        if self.fronts != "averaged" or not spec.locate().divisible or self.local_loss:
            raise ConfigError(
                f"cuts: {name} does not average fronts and backs device by device, so that layers which some devices "
                "run and others leave to the edge have no common average; use splitfed_v1 or fedfly, or give one cut"
            )
        if federation.privacy is not None:
            raise ConfigError(
                "cuts: no account is kept of privacy where devices are cut at different places; give one cut, or leave "
                "privacy out"
            )
        if federation.evaluation.leakage:
            raise ConfigError(
                f"evaluate_leakage={federation.evaluation.leakage}: it measures one front's smashed data, and devices "
                "have different fronts; give one cut, or leave it out"
            )
        if federation.optimizer.clip_norm is not None:
            raise ConfigError(
                "optimizer.clip_norm: it is of a whole segment's gradient, and devices that are cut at different "
                "places have different segments; give one cut, or leave it out"
            )
        if federation.cuts.choice.changes and not federation.optimizer.reset:
            raise ConfigError(
                "optimizer.reset=false: a device's cut may change from round to round, and its optimizer's state with "
                "it; use optimizer.reset=true, or cuts that stay"
            )
        if self._may_move():
            raise ConfigError(
                "cuts: in a real federation a session of devices that are cut at different places does not move; give "
                "one cut, use mobility=none and deployment.roaming=false, or simulate"
            )

    def settings(self) -> dict[str, Any]:
        """Returns the algorithm's own settings, its public attributes; a run resumes only with equal ones."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs besides tensors; extend it by JSON values where an algorithm remembers."""
        spent = {} if self._protected_by is None else self._protected_by.state()
        kept = {"kept": self._kept.now()} if self._kept else {}
        told = {"losses": list(self._losses)} if self._losses else {}
        remembered = {} if self._taken_part is None else self._taken_part.state()
        return {"versions": self._versions.now(), "sim_clock": self._clock, **kept, **told, **spent, **remembered}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self._versions, self._kept = Generations(state["versions"]), Generations(state.get("kept"))
        self._clock = float(state["sim_clock"])
        self._losses = [float(loss) for loss in state.get("losses", ())]
        self._protection.load_state(state)
        self._participation.load_state(state)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that a checkpoint needs besides the model; extend it where an algorithm has some."""
        return {} if self._aggregator is None else self._aggregator.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        if self._aggregator is not None:
            self._aggregator.load_tensors(tensors)

    def checkpointed(self, state: Mapping[str, Any]) -> None:
        """Note that a checkpoint with this `state` is complete, so that older generations may go."""
        self._versions.checkpointed(state["versions"])
        self._kept.checkpointed(state.get("kept", {}))

    def kept(self) -> dict[int, int]:
        """Returns each device with a private state, and the round whose generation counts."""
        owners = ((owner.partition("-"), round) for owner, round in self._versions.items())
        return {int(number): round for (kind, _, number), round in owners if kind == "device"}

    def _generations_kept(self, spec: Spec | None, cohorts: Sequence[CohortTask]) -> dict[str, tuple[int, int]]:
        """Returns the generations that this round's trainer last kept for each of these edges and devices."""
        if spec is None or not self._kept:
            return {}
        owners = [name for c in cohorts for name in (f"edge-{c.edge}", *(f"device-{t.device}" for t in c.devices))]
        names = {owner: f"{spec.target}/{owner}" for owner in owners}
        return {o: (self._kept.newest(n), self._kept.saved(n)) for o, n in names.items() if n in self._kept}

    def _note_kept(self, round: int, reports: Sequence[DeviceReport], counts: Mapping[str, int]) -> Mapping[str, int]:
        """Note the edges and devices whose state the round's trainer kept; returns the other counts of the round."""
        spec = self.planned(round)
        trainer = None if spec is None else spec.build()
        if spec is not None and trainer is not None and trainer.keeps:
            if trainer.divisible:
                owners = [f"device-{report.device}" for report in reports]
            else:
                owners = [f"edge-{name.removeprefix(KEPT)}" for name in counts if name.startswith(KEPT)]
            for owner in owners:
                self._kept.note(f"{spec.target}/{owner}", round)
        return {name: count for name, count in counts.items() if not name.startswith(KEPT)}

    def _per_device(self, segment: str, round: int) -> bool:
        """Returns whether a segment's new state needs each device's state one by one."""
        spec = self.planned(round)
        if segment not in ("back", TOP):
            return self.fronts == "averaged"
        return spec is None or bool(spec.locate().divisible)
