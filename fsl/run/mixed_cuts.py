"""Prepares a run whose devices are cut at different places."""

from collections.abc import Sequence
from dataclasses import replace

from fsl.costs import CostModel, DeviceProfile, serving_of, stage_costs
from fsl.costs.cut_choice import CutChoice, CutPlan
from fsl.costs.hardware import Hardware
from fsl.costs.predicted_loads import CutCost, PredictedLoads
from fsl.errors import ConfigError
from fsl.round.workload import Workload, copied
from fsl.settings.federation_settings import CloudStrategy, CutPlanner, Federation
from fsl.settings.training_settings import Training
from fsl.split.cut_order import in_order
from fsl.split.cutting import split


def profiles_of(training: Training, hardware: Hardware) -> dict[int, DeviceProfile]:
    """Returns each device's profile."""
    machines = hardware.machines(moving=False)
    return {device: machines.devices.of(device, training.seed) for device in range(training.devices)}


def named_cuts(choice: CutChoice | None, training: Training, hardware: Hardware) -> tuple[str, ...]:
    """Returns the names of all cuts that a choice may make, which every node of a real federation must know."""
    if choice is None:
        return ()
    if (names := choice.names(profiles_of(training, hardware))) is None:
        raise ConfigError(
            "cuts: every node of a real federation must know the cuts to choose from; name them, as in "
            "'cuts={_target_: fsl.costs.FastestRound, cuts: [pool1, pool2]}'"
        )
    return tuple(names)


def with_cuts(
    federation: Federation, workload: Workload, hardware: Hardware, choice: CutChoice, strategy: CloudStrategy
) -> tuple[Federation, Workload]:
    """Returns both with every cut that the choice may make, in the model's order; ConfigError for what cannot be."""
    if workload.cut is not None:
        raise ConfigError(f"cut={workload.cut!r}: cuts says where each device's model is cut; give one of the two")
    if workload.places is not None:
        raise ConfigError(f"places={list(workload.places)}: cuts knows devices and edges; give one of the two")
    if strategy.local_loss:
        raise ConfigError(
            f"cuts: devices of {type(strategy).__name__} train by a loss of their own, whose head fits one cut; use "
            "splitfed_v1 or fedfly, or give one cut"
        )
    profiles = profiles_of(federation.training, hardware)
    names = choice.names(profiles)
    if names is None:
        stages = stage_costs(workload.model, workload.data.train, workload.objective)
        names = _one_behind_another(workload, [stage.name for stage in stages[:-1]])
    cuts = in_order(copied(workload.model), names, workload.data.blank(2))
    plan = CutPlan(choice=choice, cuts=cuts, profiles=profiles)
    return replace(federation, cuts=plan), replace(workload, cuts=cuts)


def _one_behind_another(workload: Workload, names: Sequence[str]) -> list[str]:
    """Returns those of these cuts, in order, whose fronts have all that the front of the one before has."""
    model, example = copied(workload.model), workload.data.blank(3)
    found, before = [], frozenset[str]()
    for name in names:
        front = frozenset(split(model, name, example)["front"].state_dict())
        if before <= front:
            found.append(name)
            before = front
    return found


def cut_costs(workload: Workload) -> list[CutCost]:
    """Returns what the model costs at each of the workload's cuts."""
    data, objective = workload.data.train, workload.objective
    return [CutCost.of(stage_costs(workload.model, data, objective, [cut]), 0) for cut in workload.cuts]


def priced(federation: Federation, workload: Workload, strategy: CloudStrategy) -> CutPlanner:
    """Returns the run's plan of cuts, with what rounds are predicted by where the model's work can be counted."""
    assert federation.cuts is not None
    costs, training = federation.costs, federation.training
    if not isinstance(costs, CostModel):
        return federation.cuts
    spec = strategy.trainer(1)
    serving = serving_of(None if spec is None else spec.build(), strategy.fronts)
    samples = [workload.partition.size(device) for device in range(training.devices)]
    label = workload.data.train.targets[:1]
    at = cut_costs(workload)
    loads = PredictedLoads(workload.model, at, samples, training, federation.wire, serving, strategy.fronts, label)
    return federation.cuts.priced(costs, loads, serving)
