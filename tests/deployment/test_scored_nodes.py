"""What a run's setup tells nodes of metrics and of devices' own rows, and what a node refuses of it."""

from dataclasses import replace

import pytest
from flwr.app import ArrayRecord

from fsl.data.own_tests import OwnTests
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import Setup, build_workload
from fsl.errors import ConfigError, WireError
from fsl.messages.round_plan import DeviceTask, EvaluatePlan
from tests.helpers.node_setups import DEVICE, EDGE, setup_of

SMALL = ("data=digits", "devices=4", "model=mlp")


def share_of_zeros(outputs, targets) -> float:
    return float((targets == 0).double().mean())


def unsaid(outputs, targets):
    return 0.0


class Counted:
    def __init__(self, scale: float = 1.0):
        self.scale, self.rows = scale, 0

    def update(self, outputs, targets):
        self.rows += len(targets)

    def compute(self):
        return self.scale * self.rows


@pytest.fixture(scope="module")
def setup():
    own = f"metrics=[f1,{__name__}.share_of_zeros,{{_target_: {__name__}.Counted, scale: 2.0, name: rows}}]"
    return setup_of(*SMALL, "objective=classification", "objective.class_weights=balanced", "evaluate_own=0.25", own)


def built(setup, tmp_path, **config):
    node = {**DEVICE, "key": str(tmp_path / "k"), "state": str(tmp_path), "insecure": True, **config}
    del node["ca"]
    return build_workload(Setup.from_json(setup.to_json()), NodeSettings.read(node))


@pytest.mark.parametrize("rows", ["partition", "all"])
def test_a_node_builds_the_runs_metrics_and_holds_out_rows(rows, setup, tmp_path):
    workload = built(setup, tmp_path, allow="tests", rows=rows, **({"devices": "0"} if rows == "all" else {}))
    assert list(workload.metrics.by_name) == ["f1", "share_of_zeros", "rows"]
    assert workload.metrics.by_name["rows"].given.scale == 2.0
    assert isinstance(workload.partition, OwnTests)
    held, left = len(workload.partition.tests(0)), workload.partition.size(0)
    assert held == round(0.25 * (held + left))


def test_balanced_weights_are_counted_by_the_cloud_alone(setup, tmp_path):
    workload = built(setup, tmp_path, allow="tests")
    assert workload.objective.class_weights.tolist() == pytest.approx(setup.groups["objective"]["class_weights"])
    assert not workload.objective.balanced


def test_a_node_takes_metrics_of_allowed_packages_alone(setup, tmp_path):
    with pytest.raises(WireError, match=r"the run's metrics names .*share_of_zeros.* takes classes only from"):
        built(setup, tmp_path)


@pytest.mark.parametrize(
    "one",
    [
        f"{__name__}.unsaid",
        {"_target_": f"{__name__}.Setup"},
        "os.system",
        {"_target_": f"{__name__}.Counted", "scale": {"_target_": "os.system"}},
    ],
)
def test_a_node_builds_nothing_else_as_a_metric(one, setup, tmp_path):
    with pytest.raises(WireError, match="metrics"):
        built(replace(setup, metrics=(one,)), tmp_path, allow="tests")


def test_an_edge_needs_no_metrics(setup, tmp_path):
    workload = build_workload(setup, NodeSettings.read({**EDGE, "state": str(tmp_path)}))
    assert not workload.metrics


def test_a_node_scores_no_own_rows_in_a_private_run(setup, tmp_path):
    """Before its first round it does not know that a run is bare; after a private one it knows that it is not."""
    settings = NodeSettings.read({**EDGE, "state": str(tmp_path)})
    node = NetworkedNode(build_workload(setup, settings), replace(settings, role="device", devices=(0,)))
    plan = EvaluatePlan(run="run", round=1, devices=(DeviceTask(device=0),), private=False, on=("own",))
    with pytest.raises(ConfigError, match="exact and in no account; in a private run this node gives none"):
        node.evaluate(plan, ArrayRecord())


def test_rows_by_device_do_not_go_over_the_wire():
    with pytest.raises(ConfigError, match="nodes of a real federation have their own; give a share"):
        setup_of(*SMALL, "devices=1", "evaluate_own=[[1,2]]")
