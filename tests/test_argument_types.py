"""A value of a wrong type is one line that names it and what is allowed, in every function that users call."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import fsl
import fsl.data
from fsl import costs, data, inference, metrics, mobility, models, packets, selection
from fsl.argument_types import checks_types
from fsl.availability import TraceAvailability
from fsl.errors import ConfigError, DataError
from fsl.export.pretrained import load_pretrained
from fsl.inference import (
    SplitPoints,
    comparison,
    exits,
    links,
    lossy,
    many_devices,
    planning,
    profiles,
    separable,
    serving,
)
from fsl.models import lean

INPUTS, LABELS = torch.zeros(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
FRAME = pd.DataFrame({"a": range(6), "t": [0, 1, 0, 1, 0, 1]})
TASK = data.as_task((INPUTS, LABELS))
PARTIES = data.VerticalData({"bank": data.PartyTable(range(6), INPUTS, LABELS)}, "bank")


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))


def party(ids=range(6), features=INPUTS, labels=LABELS):
    return data.VerticalData({"bank": data.PartyTable(ids, features, labels)}, "bank")


def edge(ids=range(6), labels=LABELS):
    return data.VerticalData({"bank": data.PartyTable(range(6), INPUTS)}, data.EdgeLabels(ids, labels))


POINTS = SplitPoints(network(), INPUTS)
EXITS = exits.ExitModel(network(), {"1": "linear"}, INPUTS)

CALLS = [
    (lambda: fsl.lora(network(), r="x"), "lora.r='x': give a whole number"),
    (lambda: fsl.lora(3), "model=3: give a Module of torch"),
    (lambda: fsl.low_rank(network(), r="x"), "low_rank.r='x': give a whole number"),
    (lambda: fsl.low_rank(3), "model=3: give a Module of torch"),
    (lambda: fsl.Lora(alpha=None), "lora.alpha=None: give a number"),
    (lambda: fsl.Lora(train=3), "lora.train=3: give a text or a list of texts"),
    (lambda: fsl.merged("x"), "model='x': give a Module of torch"),
    (lambda: fsl.save_adapter(None, "x"), "model=None: give a Module of torch"),
    (lambda: fsl.join([3]), "states=[3]: give a mapping from texts to mappings from texts to Tensors of t"),
    (lambda: fsl.split(3, "0"), "model=3: give a Module of torch"),
    (lambda: fsl.possible_cuts("x"), "model='x': give a Module of torch"),
    (lambda: fsl.price(3, (INPUTS, LABELS), strategy="psl"), "model=3: give a Module of torch"),
    (lambda: fsl.price(network(), (INPUTS, LABELS), strategy="psl", devices=2, cuts=["x"]), "has no module 'x'; possi"),
    (lambda: fsl.simulate(network(), (INPUTS, LABELS), strategy="psl", cut=3), "cut=3: give a text or a list of texts"),
    (lambda: fsl.simulate(network(), (INPUTS, LABELS), strategy="psl", cut="0", places=3), "places=3: give a list"),
    (lambda: fsl.simulate(network(), (INPUTS, LABELS), strategy="psl", resume=3), "resume=3: give True or False"),
    (lambda: fsl.Schedule(milestones=3), "optimizer.milestones=3: give a list of numbers"),
    (lambda: fsl.Optimizer(schedule=3), "optimizer.schedule=3: give a Schedule of fsl"),
    (lambda: fsl.Backend(threads="x"), "backend.threads='x': give a whole number"),
    (lambda: fsl.Backend(accelerator=3), "backend.accelerator=3: give a text"),
    (lambda: fsl.LocalFederation(3), "folder=3: give a path"),
    (lambda: fsl.LocalFederation(Path(), devices="x"), "devices='x': give a whole number"),
    (lambda: load_pretrained(3), "folder=3: give a text or"),
    (lambda: party(ids=None).task(), "the ids of 'bank' are a NoneType; give a list, with an id for each row"),
    (lambda: party(ids=3).divided(0.5), "the ids of 'bank' are a int; give a list"),
    (lambda: party(features=None).divided(0.5), "the features of 'bank' cannot be used: it has none"),
    (lambda: party(features=3).divided(0.5), "the features of 'bank' have no rows, and there are 6 ids; give one each"),
    (lambda: party(labels=[1, 2]).divided(0.5), "the labels of 'bank' have 2 rows, and there are 6 ids; give one each"),
    (lambda: edge(ids=None).task(), "the ids of 'edge' are a NoneType"),
    (lambda: edge(labels="x").divided(0.5), "the labels of 'edge' cannot be used"),
    (lambda: PARTIES.divided("x"), "test_share='x': give a number"),
    (lambda: PARTIES.task(double="x"), "double='x': give True or False"),
    (lambda: data.VerticalData({"bank": 3}, "bank"), "parties: 'bank' is 3; give an fsl.data.PartyTable"),
    (lambda: data.vertical(3, LABELS, parties={"bank": ["a"]}), "table=3: give arrays by column name, a data frame"),
    (lambda: data.vertical(FRAME, LABELS, parties={"bank": 3}), "parties={'bank': 3}: give a mapping from texts to li"),
    (lambda: data.breast_cancer(test_share="x"), "data.test_share='x': give a number"),
    (
        lambda: data.vertical_csv({"bank": 3}, "id", "l", "bank"),
        "data.paths={'bank': 3}: give a mapping from texts to t",
    ),
    (lambda: data.from_table(FRAME, "t", recipe=3), "data.recipe=3: give a text or None"),
    (lambda: data.from_table(FRAME, "t", limit="x"), "data.limit='x': give a whole number or None"),
    (lambda: data.from_table(FRAME, "t", columns="a"), "data.columns='a': give a list of texts or None"),
    (lambda: data.from_text(FRAME, max_length="x"), "data.max_length='x': give a whole number"),
    (lambda: data.from_text(FRAME, text_column=3), "data.text_column=3: give a text or a list of texts or None"),
    (lambda: data.digits("x"), "data.test_share='x': give a number"),
    (lambda: data.images("x", mean=3), "data.mean=3: give a list of numbers or None"),
    (lambda: data.cifar10(3), "data.path=3: give a text or None"),
    (lambda: data.hold_out(3, 0.5, 0), "data=3: give a TaskData of fsl"),
    (lambda: data.from_columns(3, LABELS), "columns=3: give a mapping"),
    (lambda: data.from_dicts([], target=3), "target=3: give a text or None"),
    (lambda: data.TreeExamples(3, LABELS), "inputs=3: give a mapping"),
    (lambda: data.TaskData("name", 3, None, 2), "train=3: give an Examples of fsl"),
    (lambda: data.divide(TASK, "iid", 2, None, 0), "rule='iid': give a Partitioner of fsl"),
    (lambda: data.limited(3, 2, 0), "partition=3: give a Partition of fsl"),
    (lambda: data.class_counts(3, np.zeros(2), [0]), "partition=3: give a Partition of fsl"),
    (lambda: data.IID().divide(3, 2, 0), "targets=3: give a ndarray of numpy"),
    (lambda: data.Proportional(3), "partition.shares=3: give a list of numbers"),
    (lambda: data.Dirichlet("x"), "partition.alpha='x': give a number"),
    (lambda: data.Shards(None), "partition.shards_per_device=None: give a whole number"),
    (lambda: data.Pathological([]), "partition.classes_per_device=[]: give a whole number"),
    (lambda: data.Resample("x"), "samples_per_device='x': give a whole number or None"),
    (lambda: data.Given(3), "partition: 3 names no rows; give a list of row numbers for each device"),
    (lambda: data.Augmentation("x"), "augment.crop='x': give a whole number"),
    (lambda: models.MLP((4,), 2, hidden=128), "hidden=128: give a list of whole numbers"),
    (lambda: models.LeNet(3, 2), "input_shape=3: give a list of whole numbers"),
    (lambda: models.AlexNet((1, 8, 8), "x"), "classes='x': give a whole number or None"),
    (lambda: models.VGG5((1, 8, 8), 2, dropout="x"), "dropout='x': give a number"),
    (lambda: models.VGG16((1, 8, 8), 2.5), "classes=2.5: give a whole number or None"),
    (lambda: models.ResNet8("x", 2), "input_shape='x': give a list of whole numbers"),
    (lambda: models.ResNet18((1, 8, 8), None, norm=3), "norm=3: give one of batch, group, none"),
    (lambda: models.BinaryConv2d(1, 1, 1, real_inputs=3), "real_inputs=3: give True or False"),
    (lambda: models.BinaryLinear(1, 1, real_inputs=3), "real_inputs=3: give True or False"),
    (lambda: models.PackedConv2d(3), "layer=3: give a BinaryConv2d of fsl"),
    (lambda: models.PackedLinear(3), "layer=3: give a BinaryLinear of fsl"),
    (lambda: models.pack_binary(3), "model=3: give a Module of torch"),
    (lambda: models.GhostModule("x", 2), "inputs='x': give a whole number"),
    (lambda: models.GhostNet((3, 32, 32), 2, width="x"), "width='x': give a number"),
    (lambda: lean.ghosted(network(), ratio="x"), "ratio='x': give a whole number"),
    (lambda: lean.quantized(network(), bits="x"), "bits='x': give a whole number"),
    (lambda: lean.calibrated(network(), 3), "batches=3: give a list of Tensors of torch"),
    (lambda: lean.int8_front("x"), "model='x': give a Module of torch"),
    (lambda: lean.pruned(network(), "x"), "share='x': give a number"),
    (lambda: lean.zeroed(network(), 0.5, until=3), "until=3: give a text or None"),
    (lambda: lean.plan_pruning(network(), 0.5, by=3), "by=3: give one of l1, bn_scale"),
    (lambda: lean.magnitude_pruned(network(), None), "share=None: give a number"),
    (lambda: lean.unmasked(3), "model=3: give a Module of torch"),
    (lambda: lean.Rounding("x"), "bits='x': give a whole number"),
    (lambda: lean.GhostFront("x"), "lean_front.ratio='x': give a whole number"),
    (lambda: lean.QuantizedFront("x"), "lean_front.bits='x': give a whole number"),
    (lambda: lean.PrunedFront("x"), "lean_front.share='x': give a number"),
    (lambda: lean.MagnitudeFront("x"), "lean_front.share='x': give a number"),
    (lambda: models.Attention("x"), "width='x': give a whole number"),
    (
        lambda: models.VerticalMLP({"bank": 3}, 2),
        "party_shapes={'bank': 3}: give a mapping from texts to lists of whol",
    ),
    (
        lambda: models.VerticalModel({"bank": nn.Linear(4, 2)}, nn.Linear(2, 2), "sum").measure(3),
        "features=3: give a ma",
    ),
    (lambda: models.huggingface(config={}, classes="x"), "model.classes='x': give a whole number or None"),
    (lambda: models.huggingface(config=3, classes=2), "model.config=3: give a mapping"),
    (lambda: costs.DeviceProfile("x", "y"), "flops_per_second='y': give a number"),
    (lambda: costs.LinkProfile("x", 1, 1, trace=3), "trace=3: give a list of lists of numbers"),
    (lambda: costs.Mixed(3), "shares=3: give a mapping from texts to numbers"),
    (lambda: costs.load_profile("x", "pi4"), "group='x': allowed are device, link"),
    (lambda: costs.load_profile("device", []), "name=[]: give a text"),
    (lambda: costs.GivenCuts(3), "cuts=3: give a mapping from devices' ids or profiles to cuts' names"),
    (lambda: costs.CutsByProfile("x"), "rule='x': give a function"),
    (lambda: costs.FastestRound(3), "cuts=3: give the names of at least one cut"),
    (lambda: costs.stage_costs(3, TASK.train, None), "model=3: give a Module of torch"),
    (lambda: costs.segment_costs(network(), "0", 3, None), "examples=3: give an Examples of fsl"),
    (lambda: costs.Serving("queue", passes="x"), "passes='x': give a number"),
    (lambda: costs.serving_of("x"), "trainer='x': give an EdgeTrainer of fsl or None"),
    (lambda: costs.DeviceLoad(0, 0, "x", 1, 1, 1, 1), "steps='x': give a whole number"),
    (
        lambda: costs.round_cost([3], costs.Serving("queue"), (), {}, {}, {}),
        "loads=[3]: give a list of DeviceLoads of fsl",
    ),
    (lambda: costs.late_devices([], costs.Serving("queue"), 3, 1.0), "price=3: give a function"),
    (lambda: costs.CostModel("x", None, ()), "seed='x': give a whole number"),
    (lambda: selection.FedCS("x"), "selection.deadline='x': simulated seconds"),
    (lambda: selection.PowerOfChoice("x"), "selection.d='x': the number of candidates"),
    (lambda: metrics.metric_named(3), "name=3: give a text"),
    (lambda: metrics.metrics_of(None, 3), "objective=3: give an Objective of fsl"),
    (lambda: metrics.Metrics(3), "metrics: by_name=3: give a mapping"),
    (lambda: mobility.ScheduledMobility(3), "mobility.schedule=3: give a list of mappings"),
    (lambda: mobility.BackAndForth(3), "mobility.devices=3: give a list of whole numbers"),
    (lambda: mobility.RandomMobility("x"), "mobility.p='x': give a number"),
    (lambda: mobility.TraceMobility("x", "y"), "mobility.round_seconds='y': give a number"),
    (lambda: profiles.Encoding("x"), "factor='x': give a number"),
    (lambda: profiles.LatencyPredictor(3), "models=3: give a list of TimedModels of fsl"),
    (lambda: profiles.held_out_errors([]), "models=[]: give a mapping from texts to TimedModels of fsl"),
    (lambda: profiles.image_encoding(3, "jpeg", 75), "task=3: give a TaskData of fsl"),
    (lambda: profiles.raw_image_encoding(3), "task=3: give a TaskData of fsl"),
    (lambda: profiles.measure(3, INPUTS), "points=3: give a SplitPoints of fsl"),
    (lambda: profiles.natural_bottlenecks({"a": "x"}, 3), "crossings={'a': 'x'}: give a mapping from texts to numbers"),
    (lambda: profiles.read_profile(3), "path=3: give a text or a path"),
    (lambda: profiles.time_layers(3, INPUTS), "model=3: give a Module of torch"),
    (lambda: planning.LinkState("x", 1), "up_mbit='x': give a number"),
    (lambda: planning.SplitChoice(3), "point=3: give a text"),
    (lambda: planning.DevicePower("x", 1, 1, 1), "active_watts='x': give a number"),
    (lambda: planning.SplitCosts(device=3, edge=3), "device=3: give a ModelProfile of fsl"),
    (lambda: links.LinkSchedule(3), "link.trace=3: give a RateTrace of fsl"),
    (lambda: links.ShapedLink(3, planning.RateTrace.constant(1.0)), "link.edge=3: give a text or a list of texts"),
    (lambda: planning.predicted(3, planning.LOCAL, None), "costs=3: give a SplitCosts of fsl"),
    (lambda: planning.best_point(3, None), "costs=3: give a SplitCosts of fsl"),
    (lambda: planning.DynamicSplit(3), "costs=3: give a SplitCosts of fsl"),
    (lambda: planning.Scouting(planning.Local(), scout=3), "scout=3: give a SplitChoice of fsl"),
    (lambda: planning.StaticSplit(3), "point=3: give a text"),
    (lambda: planning.Remote(3), "input_format=3: give a text or None"),
    (lambda: planning.CompressedInput("jpeg", "x"), "quality='x': give a whole number"),
    (lambda: planning.RateTrace(3, (1.0,)), "seconds=3: give a list of numbers"),
    (lambda: planning.RateModel("x", 0, 0, 1), "level_mbit='x': give a number"),
    (lambda: planning.RateEstimator(weight="x"), "weight='x': give a number"),
    (lambda: planning.RequestStream(costs=3, arrivals=[], up=3, down=3), "costs=3: give a SplitCosts of fsl"),
    (lambda: planning.poisson_arrivals("x", 1, 0), "per_second='x': give a number"),
    (lambda: planning.LinkProbes("x"), "bytes='x': give a whole number"),
    (lambda: planning.simulate_requests(3, planning.Local()), "stream=3: give a RequestStream of fsl"),
    (lambda: planning.clairvoyant_plan(3), "stream=3: give a RequestStream of fsl"),
    (lambda: planning.static_result(3, planning.LOCAL), "stream=3: give a RequestStream of fsl"),
    (lambda: planning.profiled_exit_seconds(3, "a", None), "model=3: give an ExitModel of fsl"),
    (lambda: exits.ExitModel(3, {}, INPUTS), "backbone=3: give a Module of torch"),
    (lambda: exits.train_exits(3, TASK), "model=3: give an ExitModel of fsl"),
    (lambda: exits.train_exits(EXITS, TASK, epochs="x"), "epochs='x': give a whole number"),
    (lambda: exits.copycat(EXITS, TASK, batch_size="x"), "batch_size='x': give a whole number"),
    (lambda: exits.train_predictors(EXITS, TASK, 0.5, width="x"), "width='x': give a whole number"),
    (lambda: exits.collect_outputs(EXITS, TASK, batch_size="x"), "batch_size='x': give a whole number"),
    (lambda: exits.choose_thresholds(3, None, [1.0], 1.0), "outputs=3: give an ExitOutputs of fsl"),
    (lambda: exits.bypass_at(3, 0.5, "0", None), "outputs=3: give an ExitOutputs of fsl"),
    (lambda: exits.pays("x", 0, 1, 1, 1), "sent='x': give a number"),
    (lambda: exits.exit_seconds(EXITS, 3, device_macs_per_second=1, edge_macs_per_second=1), "cut=3: give a text"),
    (lambda: exits.ExitSeconds(None, 0, 1.0), "compute=None: give an ExitCosts of fsl"),
    (lambda: exits.save_exits(3, EXITS), "folder=3: give a text or"),
    (lambda: exits.load_exits("x", allowed=3), "allowed=3: give a list of texts"),
    (lambda: exits.width_for_macs("conv", 3, 2, 1e3), "shape=3: give a list of whole numbers"),
    (lambda: data.digits_with_tones(seed="x"), "seed='x': give a whole number"),
    (lambda: models.PictureAndTone(width="x"), "width='x': give a whole number"),
    (lambda: exits.ExitPredictor((4,), "x"), "width='x': give a whole number"),
    (lambda: exits.Distillation("x"), "share='x': give a number"),
    (lambda: exits.Thresholds(3), "beta=3: give a list of numbers"),
    (lambda: exits.ConvExit("x"), "width='x': give a whole number"),
    (lambda: exits.MLPExit(grid="x"), "grid='x': give a whole number"),
    (lambda: exits.SLViTExit(patch="x"), "patch='x': give a whole number or None"),
    (lambda: exits.FusionExit("x"), "width='x': give a whole number"),
    (lambda: separable.separable(3, devices=2, input_shape=(3, 8, 8)), "model=3: give a Module of torch"),
    (lambda: separable.separable(network(), devices="x", input_shape=(3, 8, 8)), "devices='x': give a whole number"),
    (lambda: separable.Gates(3), "links=3: give a list of"),
    (lambda: separable.search_gates(3, TASK), "model=3: give a SeparableModel of fsl"),
    (lambda: separable.train_separable(3, TASK), "model=3: give a SeparableModel of fsl"),
    (lambda: separable.separable_accuracy(3, TASK), "model=3: give a SeparableModel of fsl"),
    (lambda: separable.separable_latency(3, devices="pi4", link="lan"), "model=3: give a SeparableModel of fsl"),
    (lambda: separable.separable_part(3, 0), "model=3: give a SeparableModel of fsl"),
    (lambda: separable.save_devices(3, None), "folder=3: give a text or"),
    (lambda: separable.load_device(3), "folder=3: give a text or"),
    (lambda: separable.SeparableDevice(3), "part=3: give a SeparablePart of fsl"),
    (lambda: separable.LocalGroup(3), "folder=3: give a text or"),
    (lambda: separable.sign_part("x", device=1, digest="", expires=0), "key='x': give an Ed25519PrivateKey"),
    (lambda: many_devices.RadioCell(channels="x"), "channels='x': give a whole number"),
    (lambda: many_devices.jetson_nano_resnet18(edge_times_as_fast="x"), "edge_times_as_fast='x': give a number"),
    (lambda: many_devices.PointTable.of(3), "costs=3: give a SplitCosts of fsl"),
    (lambda: many_devices.FleetSetting(table=3), "table=3: give a PointTable of fsl"),
    (lambda: many_devices.FleetSimulation(3, 1, 0), "setting=3: give a FleetSetting of fsl"),
    (lambda: many_devices.FleetEnvironment(3), "setting=3: give a FleetSetting of fsl"),
    (lambda: many_devices.GreedyFleet(3), "channels=3: give one of first, round robin"),
    (lambda: many_devices.evaluated(many_devices.LocalFleet(), 3, None), "setting=3: give a FleetSetting of fsl"),
    (lambda: many_devices.enumerated_optimum(3, None), "setting=3: give a FleetSetting of fsl"),
    (lambda: many_devices.searched_actions(3, None), "setting=3: give a FleetSetting of fsl"),
    (lambda: many_devices.PpoOptions(gamma="x"), "ppo.gamma='x': give a number"),
    (lambda: many_devices.train_fleet_policy(3), "setting=3: give a FleetSetting of fsl"),
    (lambda: many_devices.load_fleet_policy(3), "path=3: give a text or a path"),
    (lambda: many_devices.FleetPolicy(3, 3), "trained_for=3: give a TrainedFor of fsl"),
    (lambda: many_devices.DeviceSituation("x"), "metres='x': give a number"),
    (lambda: many_devices.FleetController(many_devices.LocalFleet(), 3, []), "setting=3: give a FleetSetting of fsl"),
    (lambda: serving.Batching("x"), "max_rows='x': give a whole number"),
    (lambda: serving.InferenceEdge(3), "points=3: give a SplitPoints of fsl"),
    (lambda: serving.InferenceEdge(POINTS, queue="x"), "queue='x': give a whole number"),
    (lambda: serving.InferenceEdge(POINTS, token_keys=3), "token_keys=3: give a list of Ed25519PublicKeys"),
    (lambda: serving.InferenceDevice(3, []), "points=3: give a SplitPoints of fsl"),
    (lambda: serving.InferenceDevice(POINTS, "x"), "edges='x': give a list of texts"),
    (lambda: serving.InferenceDevice(POINTS, [], patience="x"), "patience='x': give a number"),
    (lambda: serving.DeviceExits(3, 0.5), "model=3: give an ExitModel of fsl"),
    (lambda: serving.InferenceDevice(POINTS, [], exits=3), "exits=3: give a DeviceExits of fsl or None"),
    (lambda: serving.ServingGrant("x", "y"), "expires='y': give a number"),
    (lambda: serving.sign_grant("x", None), "key='x': give an Ed25519PrivateKey"),
    (lambda: serving.check_grant("x", [], 0.0), "token='x': give a bytes"),
    (lambda: TraceAvailability(rounds={0: [1]}, period="x"), "availability.period='x': give a whole number or None"),
]


@pytest.mark.parametrize(("call", "line"), CALLS, ids=[line[:30] for _, line in CALLS])
def test_a_wrong_type_is_one_line_that_names_it_and_what_is_allowed(call, line):
    with pytest.raises(ConfigError) as refused:
        call()
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


# What users do not call with values of their own, and what says for itself what it wants of any type.
OTHERS = {
    "data": {
        *("Alignment", "Clear", "EdgeLabels", "Examples", "IID", "Natural", "PSI", "Partition", "Partitioner"),
        *("PartyTable", "TensorExamples", "as_partitioner", "Given"),
    },
    "models": {
        "BinaryActivation",
        "BottleFit",
        "Concatenation",
        "Fusion",
        "Max",
        "Mean",
        "Product",
        "Sum",
        "VerticalModel",
    },
    "models.lean": {"ChannelGroup", "LeanFront", "MaskedConv2d", "MaskedLinear", "PruningPlan", "check_int8"},
    "costs": {
        "CutChoice",
        "CutPrice",
        "FastestRound",
        "Forecast",
        "GivenCuts",
        "Hardware",
        "RoundCost",
        "StageCost",
        "machines",
    },
    "selection": {"BySamples", "FedCS", "PowerOfChoice", "RoundRobin", "Selection", "Uniform"},
    "metrics": {"Metric", "Scored", "as_metrics"},
    "packets": {"Passage", "Retransmitted"},
    "inference": {"Crossing"},
    "inference.links": set(),
    "inference.lossy": {"LossyOutputs", "UdpAnswers", "UdpCounts"},
    "inference.many_devices": {
        *("Allotment", "FixedFleet", "FleetActions", "FleetEpisodes", "FleetResult", "FleetRule", "FleetView"),
        *("GreedyInTurn", "LocalFleet", "OffloadingFleet", "TakingTurns", "TrainingProgress"),
    },
    "inference.profiles": {
        *("Layer", "ModelProfile", "PointProfile", "PredictionError", "SecondsSpread", "SideProfile", "SplitCheck"),
        *("TimedModel", "machine_in_words"),
    },
    "inference.planning": {
        *("ClairvoyantPlan", "Local", "Prediction", "RequestSpending", "ServedRequest", "SplitPolicy", "StreamResult"),
        "best_of",
    },
    "inference.exits": {
        "Bypass",
        "ChosenThresholds",
        "ExitCosts",
        "ExitHead",
        "ExitOutputs",
        "ExitResult",
        "ThresholdLine",
        "Onward",
        "PartialResult",
        "Replay",
        "SavedExits",
        "ThresholdLines",
        "TrainedPhase",
    },
    "inference.comparison": {"ExitRequests", "MeasuredAnswer", "PolicyFigures"},
    "inference.separable": {
        "SeparablePart",
        "GateSearch",
        "SeparableBytes",
        "SeparableLatency",
        "SeparableModel",
        "StageSeconds",
    },
    "inference.serving": {
        *("Answer", "AnswerSeconds", "DeviceFigures", "EdgeFigures", "EdgeStatus", "UnansweredError"),
    },
}


@pytest.mark.parametrize(
    "room",
    [
        data,
        models,
        lean,
        costs,
        selection,
        metrics,
        packets,
        inference,
        links,
        lossy,
        many_devices,
        profiles,
        planning,
        exits,
        comparison,
        separable,
        serving,
    ],
    ids=OTHERS,
)
def test_each_public_function_checks_its_arguments_types(room):
    """A new one does so too, or its name is added to the list above with a call among `CALLS`."""
    unchecked = set()
    for name in room.__all__:
        found = getattr(room, name)
        if (callable(found) and inspect.isroutine(found)) or inspect.isclass(found):
            function = found.__init__ if inspect.isclass(found) else found
            if not hasattr(function, "__wrapped__"):
                unchecked.add(name)
    assert unchecked == OTHERS[room.__name__.removeprefix("fsl.")]


def test_arguments_that_fit_pass_and_others_do_not():
    @checks_types("group.", DataError, leave=("own",))
    def function(
        whole: int = 0,
        share: float = 0.0,
        flag: bool = False,
        text: str = "",
        choice: Literal["a", "b"] = "a",
        names: Sequence[str] = (),
        pairs: Sequence[Sequence[float]] = (),
        by_name: Mapping[str, int] | None = None,
        path: str | Path = "",
        kind: type | None = None,
        rule: Callable[[int], int] | None = None,
        tensor: Tensor | None = None,
        several: Iterable[int] = (),
        anything: Any = None,
        own: int = 0,
        *,
        last: tuple[int, ...] = (),
    ) -> str:
        """Says that it was called."""
        return "called"

    fitting: dict[str, list[Any]] = {
        "whole": [3, np.int64(3), torch.tensor(3)],
        "share": [3, 0.5, np.float32(0.5), torch.tensor(0.5)],
        "flag": [True, np.True_],
        "text": ["x"],
        "choice": ["a", "c"],  # a choice that is none is the function's to refuse
        "names": [[], ("a",), ["a", "b"], pd.Index(["a"]), np.array(["a"]), {"a": 1}.keys()],
        "pairs": [[[0, 1.0]], np.zeros((2, 2)), torch.zeros(2, 2)],
        "by_name": [None, {}, {"a": 1}],
        "path": ["x", Path("x")],
        "kind": [None, int],
        "rule": [None, abs, lambda one: one],
        "tensor": [torch.zeros(1)],
        "several": [iter([1]), {1}, range(3)],
        "anything": ["x", None, 3],
        "own": ["x"],
        "last": [[1], (1, 2)],
    }
    wrong: dict[str, list[Any]] = {
        "whole": ["3", 3.5, True, None, [3], np.True_, torch.tensor(3.5), torch.zeros(2), int],
        "share": ["3", True, None, [3], np.zeros(1), int],
        "flag": [1, "true", None],
        "text": [3, None, b"x", ["x"]],
        "choice": [3, None, ["a"]],
        "names": ["ab", 3, None, [3], {"a": 1}, b"ab", object(), iter(["a"]), np.zeros(2), np.array("a")],
        "pairs": [[0, 1], ["ab"], np.zeros(2)],
        "by_name": [[], "x", {1: 1}, {"a": "b"}],
        "path": [3, None, b"x"],
        "kind": [3, "int"],
        "rule": [3, "abs"],
        "tensor": [3, np.zeros(1)],
        "several": [3, "12", None, ["x"]],
        "last": [3, ["x"]],
    }
    assert fitting.keys() == inspect.signature(function).parameters.keys()
    for name, values in fitting.items():
        for value in values:
            assert function(**{name: value}) == "called", (name, value)
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(DataError, match=rf"^group\.{name}=.*: give "):
                function(**{name: value})
    with pytest.raises(DataError, match=r"^group\.share='x': give a number$"):
        function(1, "x")  # by its place
    assert (function.__name__, function.__doc__) == ("function", "Says that it was called.")


def test_only_some_arguments_may_be_checked():
    @checks_types(only=("one",))
    def function(one: int, other: int) -> tuple[object, object]:
        return one, other

    assert function(1, "x") == (1, "x")
    with pytest.raises(ConfigError, match="one='x': give a whole number"):
        function("x", 1)


def test_a_class_is_checked_in_its_constructor_and_keeps_its_signature():
    @checks_types()
    class Pair:
        def __init__(self, one: int, other: str = "x"):
            self.both = SimpleNamespace(one=one, other=other)

    assert Pair(1, other="y").both.other == "y"
    assert list(inspect.signature(Pair).parameters) == ["one", "other"]
    with pytest.raises(ConfigError, match="other=3: give a text"):
        Pair(1, 3)


def test_a_line_stays_one_line_whatever_is_given():
    message = str(ConfigError(f"model={torch.zeros(3, 3)!r}: give another"))
    assert message.startswith("model=tensor([[0., 0., 0.], [0.,")
    assert "\n" not in message
