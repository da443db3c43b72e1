"""Chooses where each device's model is cut: weak devices run a little of it, strong ones more."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fsl.argument_types import checks_types
from fsl.costs.cost_model import CostModel
from fsl.costs.predicted_loads import PredictedLoads
from fsl.costs.profiles import DeviceProfile
from fsl.costs.round_cost import DeviceLoad, RoundCost
from fsl.costs.serving import Serving
from fsl.errors import ConfigError
from fsl.faults import said
from fsl.quoting import short


@checks_types()
@dataclass(frozen=True)
class CutRound:
    """What a choice of cuts may go by in one round.

    `cuts`: the names to choose from, in the model's order. `devices`: who trains, in order of id; `profiles`: of all.
    """

    round: int
    cuts: Sequence[str]
    devices: Sequence[int]
    profiles: Mapping[int, DeviceProfile]
    predict: Callable[[Mapping[int, str]], RoundCost] | None

    def cost(self, cuts: Mapping[int, str]) -> RoundCost:
        """Predict the round with these cuts by device; ConfigError for a model whose work cannot be counted."""
        if self.predict is None:
            raise ConfigError("cuts: the model's work cannot be counted, so that no round's time can be predicted")
        return self.predict(cuts)


class CutChoice(ABC):
    """Chooses a cut for each device; subclass it for a rule of your own.

    `changes`: a device's cut may be another one from round to round.
    """

    changes: bool = False

    @abstractmethod
    def names(self, profiles: Mapping[int, DeviceProfile]) -> Sequence[str] | None:
        """Returns every cut that may ever be chosen for these devices; None: any that the model has."""

    @abstractmethod
    def choose(self, round: CutRound) -> Mapping[int, str]:
        """Returns the name of the cut of each device of a round."""

    def written(self, cut: str) -> str:
        """Returns where the user named a cut, and the cut, for an error's line."""
        return f"cuts: '{cut}'"

    def settings(self) -> Mapping[str, Any]:
        """Returns what a run's settings say of it; a run resumes only with the same."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class GivenCuts(CutChoice):
    """Cuts by device id, or by the name of a device's profile; an id goes before a profile."""

    def __init__(self, of: Mapping[int | str, str]):
        """`of`: the cut for each device id or profile, as {"pi3": "pool1", "jetson_nano": "conv3", 7: "pool2"}."""
        if not isinstance(of, Mapping):
            raise ConfigError(f"cuts={short(of)}: give a mapping from devices' ids or profiles to cuts' names")
        self.of: dict[str, str] = {}
        for key, cut in of.items():
            if isinstance(key, bool) or not isinstance(key, int | str) or not isinstance(cut, str):
                raise ConfigError(f"cuts: {short(key)}: {short(cut)}: give a device's id or profile, and a cut's name")
            self.of[str(key)] = cut
        if not self.of:
            raise ConfigError("cuts={}: give at least one device's id or profile with the name of a cut")

    def names(self, profiles: Mapping[int, DeviceProfile]) -> Sequence[str]:
        """Returns the cuts that are given; ConfigError for a device without one, and for one that nobody is."""
        there = {*map(str, profiles), *(profile.name for profile in profiles.values())}
        if unknown := [key for key in self.of if key not in there]:
            kinds = ", ".join(dict.fromkeys(profile.name for profile in profiles.values()))
            raise ConfigError(
                f"cuts: there is no device '{unknown[0]}': devices are 0 to {len(profiles) - 1}, of profiles {kinds}"
            )
        for device, profile in profiles.items():
            self._of(device, profile)
        return list(dict.fromkeys(self.of.values()))

    def written(self, cut: str) -> str:
        """Returns the first id or profile with this cut, and the cut."""
        key = next((key for key, given in self.of.items() if given == cut), None)
        return super().written(cut) if key is None else f"cuts.{key}={cut!r}"

    def choose(self, round: CutRound) -> Mapping[int, str]:
        """Returns the same cut for a device in each round."""
        return {device: self._of(device, round.profiles[device]) for device in round.devices}

    def _of(self, device: int, profile: DeviceProfile) -> str:
        cut = self.of.get(str(device), self.of.get(profile.name))
        if cut is None:
            raise ConfigError(
                f"cuts: device {device} ({profile.name}) has no cut; give one for its id, or for '{profile.name}'"
            )
        return cut


class CutsByProfile(CutChoice):
    """Cuts by a function of a device's profile, as `lambda profile: "pool1" if profile.flops_per_second < 1e9 ...`."""

    @checks_types()
    def __init__(self, rule: Callable[[DeviceProfile], str]):
        self.rule = rule

    def names(self, profiles: Mapping[int, DeviceProfile]) -> Sequence[str]:
        """Returns what the function gives for these devices."""
        return list(dict.fromkeys(self._of(profile) for profile in profiles.values()))

    def choose(self, round: CutRound) -> Mapping[int, str]:
        """Returns what the function gives for each device."""
        return {device: self._of(round.profiles[device]) for device in round.devices}

    def _of(self, profile: DeviceProfile) -> str:
        try:
            cut = self.rule(profile)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"cuts: the function failed for profile '{profile.name}' ({said(error)})") from error
        if not isinstance(cut, str):
            raise ConfigError(f"cuts: the function gave {short(cut)} for profile '{profile.name}'; give a cut's name")
        return cut


class FastestRound(CutChoice):
    """Chooses the cuts with which the predicted round is shortest, anew in each round.

    Begins with the cut at which each device alone would be done first, then goes on as long as another cut for the
    device that is done last makes the round shorter: devices at one edge share its slots, so that what is best for each
    alone need not be best for all. FedAdapt (Wu et al. 2022, arXiv 2107.04271) and S2FL (Yan et al. 2023, arXiv
    2311.13163) choose by measured times; here the cost model predicts them, so that links' traces and who takes part
    change the choice.
    """

    changes = True

    def __init__(self, cuts: Sequence[str] | None = None):
        """`cuts`: names to choose from; all that the model has by default."""
        listed = isinstance(cuts, Collection) and not isinstance(cuts, str)
        if cuts is not None and not (listed and len(cuts) and all(isinstance(cut, str) for cut in cuts)):
            raise ConfigError(f"cuts={short(cuts)}: give the names of at least one cut to choose from, or leave it out")
        self.cuts = None if cuts is None else list(cuts)

    def names(self, profiles: Mapping[int, DeviceProfile]) -> Sequence[str] | None:
        """Returns the names to choose from."""
        return self.cuts

    def choose(self, round: CutRound) -> Mapping[int, str]:
        """Returns the cuts of the shortest round that it finds."""
        chosen = {device: self._alone(round, device) for device in round.devices}
        best = round.cost(chosen)
        for _ in range(2 * len(round.devices)):
            last = max(best.devices, key=lambda cost: (cost.seconds, -cost.device)).device
            tried = [{**chosen, last: cut} for cut in round.cuts if cut != chosen[last]]
            costs = [(round.cost(each), each) for each in tried]
            cost, found = min(costs, key=lambda pair: _order(pair[0]), default=(best, chosen))
            if _order(cost) >= _order(best):
                break
            best, chosen = cost, found
        return chosen

    def _alone(self, round: CutRound, device: int) -> str:
        return min(round.cuts, key=lambda cut: round.cost({device: cut}).seconds)


def _order(cost: RoundCost) -> tuple[float, float]:
    """What makes a round better than another: its seconds, and then its devices', where several are done last."""
    return cost.seconds, sum(device.seconds for device in cost.devices)


def as_cuts(given: Any) -> CutChoice | None:
    """A choice of cuts from itself, a mapping by device id or profile, a function of a profile, or "fastest"."""
    if given is None or isinstance(given, CutChoice):
        return given
    if isinstance(given, type) and issubclass(given, CutChoice):
        return given()
    if given == "fastest":
        return FastestRound()
    if isinstance(given, Mapping):
        return GivenCuts(given)
    if callable(given):
        return CutsByProfile(given)
    raise ConfigError(
        f"cuts={short(given, 80)}: give cuts by device id or profile, as {{'pi3': 'pool1', 'jetson_nano': 'conv3'}}, a "
        "function of a profile, 'fastest', or an fsl.costs.CutChoice"
    )


@dataclass(frozen=True, kw_only=True)
class CutPlan:
    """A run's choice of cuts: which number of `cuts`, from 0 on, each device has in a round."""

    choice: CutChoice
    cuts: tuple[str, ...]
    profiles: Mapping[int, DeviceProfile]
    costs: CostModel | None = None
    loads: PredictedLoads | None = None
    serving: Serving | None = None

    def at(self, round: int, devices: Sequence[int], edge_of: Callable[[int], int], start: float) -> dict[int, int]:
        """Returns the number of each device's cut in a round that begins at second `start` of the run."""
        if not devices:
            return {}

        def predict(cuts: Mapping[int, str]) -> RoundCost:
            assert self.costs is not None
            assert self.loads is not None
            assert self.serving is not None
            loads = [self.loads.of(device, self._number(cut), edge_of(device)) for device, cut in cuts.items()]
            return self.costs.round(loads, self.serving, start)

        there = CutRound(round, self.cuts, devices, self.profiles, None if self.loads is None else predict)
        chosen = self.choice.choose(there)
        return {device: self._number(chosen.get(device)) for device in devices}

    @property
    def predicts(self) -> bool:
        """Whether it knows what rounds are predicted by."""
        return self.loads is not None

    def load(self, device: int, cut: int, edge: int) -> DeviceLoad:
        """Returns what a device would load at the cut of this number, and at this edge."""
        assert self.loads is not None
        return self.loads.of(device, cut, edge)

    def _number(self, cut: object) -> int:
        if cut not in self.cuts:
            raise ConfigError(
                f"{type(self.choice).__name__}.choose() gave {short(cut)}, and the cuts of this run are "
                f"{', '.join(self.cuts)}; let names() return every cut that it may choose"
            )
        return self.cuts.index(str(cut))

    def priced(self, costs: CostModel, loads: PredictedLoads, serving: Serving) -> "CutPlan":
        """Returns the same plan, with what rounds are predicted by."""
        return replace(self, costs=costs, loads=loads, serving=serving)

    def settings(self) -> dict[str, Any]:
        """Returns what a run's settings say of it."""
        own = {f"cuts.{name}": value for name, value in self.choice.settings().items()}
        return {"cuts": type(self.choice).__name__, **own}
