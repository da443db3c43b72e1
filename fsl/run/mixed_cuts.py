"""Prepares a run whose devices are cut at different places."""

from dataclasses import replace

from fsl.costs import CostModel, stage_costs
from fsl.costs.cut_choice import CutChoice, CutPlan
from fsl.costs.hardware import Hardware
from fsl.costs.predicted_loads import CutCost, PredictedLoads
from fsl.errors import ConfigError
from fsl.round.workload import Workload, copied
from fsl.settings.federation_settings import CutPlanner, Federation
from fsl.split.cut_order import in_order


def with_cuts(
    federation: Federation, workload: Workload, hardware: Hardware, choice: CutChoice
) -> tuple[Federation, Workload]:
    """Returns both with every cut that the choice may make, in the model's order; ConfigError for what cannot be."""
    if workload.cut is not None:
        raise ConfigError(f"cut={workload.cut!r}: cuts says where each device's model is cut; give one of the two")
    training, machines = federation.training, hardware.machines(moving=False)
    profiles = {device: machines.devices.of(device, training.seed) for device in range(training.devices)}
    names = choice.names(profiles)
    if names is None and federation.placement is not None:
        raise ConfigError(
            "cuts: in a real federation name the cuts to choose from, which every node must know, as in "
            "fsl.costs.FastestRound(cuts=[...])"
        )
    if names is None:
        stages = stage_costs(workload.model, workload.data.train, workload.objective)
        names = [stage.name for stage in stages[:-1]]
    cuts = in_order(copied(workload.model), names, workload.data.blank(2))
    plan = CutPlan(choice=choice, cuts=cuts, profiles=profiles)
    return replace(federation, cuts=plan), replace(workload, cuts=cuts)


def cut_costs(workload: Workload) -> list[CutCost]:
    """Returns what the model costs at each of the workload's cuts."""
    data, objective = workload.data.train, workload.objective
    return [CutCost.of(stage_costs(workload.model, data, objective, [cut]), 0) for cut in workload.cuts]


def priced(federation: Federation, workload: Workload) -> CutPlanner:
    """Returns the run's plan of cuts, with what rounds are predicted by where the model's work can be counted."""
    assert federation.cuts is not None
    costs, training = federation.costs, federation.training
    if not isinstance(costs, CostModel):
        return federation.cuts
    serving = CutPlan.serving
    samples = [workload.partition.size(device) for device in range(training.devices)]
    label = workload.data.train.targets[:1]
    at = cut_costs(workload)
    loads = PredictedLoads(workload.model, at, samples, training, federation.wire, serving, "averaged", label)
    return federation.cuts.priced(costs, loads)
