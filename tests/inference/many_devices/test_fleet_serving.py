"""A fleet's rule at work: real devices divide as it says, and a real edge takes only what it allows."""

import time

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fsl.inference.many_devices import (
    DeviceSituation,
    FixedFleet,
    FleetActions,
    FleetController,
    FleetPolicy,
    FleetRule,
    FleetSetting,
    PointTable,
    PpoOptions,
    RadioCell,
    load_fleet_policy,
    train_fleet_policy,
)
from fsl.inference.planning import LOCAL, REMOTE, SplitChoice, StaticSplit
from fsl.inference.serving import InferenceDevice, InferenceEdge, ServingGrant, sign_grant
from tests.helpers.fleets import told
from tests.helpers.served import batch, served

KEY = Ed25519PrivateKey.generate()
POINTS = served("LeNet", ["pool1", "fc1"])
TABLE = PointTable(
    model="LeNet",
    choices=(REMOTE, SplitChoice("pool1", "float16"), SplitChoice("fc1"), LOCAL),
    head_seconds=(0.0, 0.004, 0.013, 0.016),
    head_joules=(0.0, 0.008, 0.026, 0.032),
    up_bits=(*(8.0 * POINTS.crossing(name).bytes for name in ("input", "pool1", "fc1")), 0.0),
    tail_seconds=(0.002, 0.0015, 0.0004, 0.0),
    down_bits=(320.0, 320.0, 320.0, 0.0),
)
SETTING = FleetSetting(table=TABLE, devices=2, radio=RadioCell(channels=1))
INPUTS = [batch("LeNet", 1, seed) for seed in range(6)]


def controller(rule: FleetRule, **options) -> FleetController:
    return FleetController(rule, SETTING, ["near", "far"], **options)


def device(edge: InferenceEdge, name: str, policy) -> InferenceDevice:
    token = sign_grant(KEY, ServingGrant(name, time.time() + 3600))
    return InferenceDevice(POINTS, [edge.address], policy=policy, codecs=["float16"], token=token, lean=False)


def edge_of(fleet: FleetController) -> InferenceEdge:
    return InferenceEdge(POINTS, token_keys=[KEY.public_key()], admission=fleet, lean=None)


def asked(fleet: FleetController) -> dict[str, list]:
    """What two real devices are answered at a real edge."""
    with (
        edge_of(fleet) as edge,
        device(edge, "near", fleet.policy("near")) as near,
        device(edge, "far", fleet.policy("far")) as far,
    ):
        return {name: [one.infer(i) for i in INPUTS] for name, one in (("near", near), ("far", far))}


def test_two_devices_divide_as_they_are_told():
    answers = asked(controller(FixedFleet(told([1, 3], [0, 0], [0.1, 1.0]))))
    assert {(a.where, a.point, a.codec) for a in answers["near"]} == {("edge", "pool1", "float16")}
    assert {(a.where, a.point) for a in answers["far"]} == {("device", "output")}
    for answer, inputs in zip(answers["far"], INPUTS):
        assert torch.equal(answer.outputs, POINTS.model(inputs))


def test_a_device_that_asks_out_of_turn_is_refused_and_computes_the_rest_itself():
    fleet = controller(FixedFleet(told([1, 3])))
    with edge_of(fleet) as edge, device(edge, "far", StaticSplit("fc1")) as far:
        answer = far.infer(INPUTS[0])
        assert edge.figures.outcomes["overloaded"] == 1
    assert answer.where == "device"
    assert "far has no turn at fc1 now" in answer.reason
    assert torch.equal(answer.outputs, POINTS.model(INPUTS[0]))


@pytest.mark.slow
def test_a_trained_policy_runs_devices_and_edge(tmp_path):
    options = PpoOptions(slots=64, copies=4, rollout=4, epochs=1, batch=16)
    train_fleet_policy(SETTING, options=options).save(tmp_path / "policy.safetensors")
    fleet = controller(load_fleet_policy(tmp_path / "policy.safetensors"))
    fleet.report("near", DeviceSituation(5.0, 200))
    fleet.report("far", DeviceSituation(90.0, 200))
    answers = asked(fleet)
    for name in ("near", "far"):
        choice = fleet.allotment(name).choice
        assert {(a.point, a.reason) for a in answers[name]} == {(choice.point, "")}
        assert {a.where for a in answers[name]} == {"device" if choice == LOCAL else "edge"}


class ByDistance(FleetRule):
    """Whoever is within 30 m sends."""

    name = "by distance"

    def actions(self, setting, view):
        points = np.where(view.metres < 30, 1, 3)
        return FleetActions(points, np.zeros_like(points), np.ones(points.shape))


def test_a_slot_goes_by_before_a_report_counts_and_what_was_begun_before_may_still_ask():
    now = [0.0]
    fleet = controller(ByDistance(), clock=lambda: now[0])
    fleet.report("near", DeviceSituation(10.0))
    assert fleet.allotment("near").choice.point == "pool1"
    fleet.report("near", DeviceSituation(50.0))
    assert fleet.allotment("near").choice.point == "pool1"
    assert fleet.refused_seconds("near", "pool1") == 0
    now[0] = 0.5
    assert fleet.allotment("near").choice == LOCAL
    assert fleet.refused_seconds("near", "pool1") == 0
    now[0] = 1.2
    assert fleet.refused_seconds("near", "pool1") == pytest.approx(0.5)
    now[0] = 1.5
    assert fleet.refused_seconds("near", "pool1") == pytest.approx(0.2)


def test_who_is_not_of_the_fleet_has_no_turn():
    assert controller(ByDistance()).refused_seconds("stranger", "pool1") == SETTING.slot_seconds


def test_what_devices_report_is_what_the_policy_sees():
    policy, seen = FleetPolicy.untrained(SETTING, 0), []

    class Watching(FleetRule):
        name = "watching"

        def actions(self, setting, view):
            seen.append(view)
            return policy.actions(setting, view)

    fleet = controller(Watching())
    fleet.report("far", DeviceSituation(80.0, 7, 0.01, 5e4))
    fleet.report_backlog(0.25)
    fleet.allotment("near")
    assert seen[0].metres.tolist() == [[100.0, 80.0]]
    assert seen[0].tasks.tolist() == [[0, 7]]
    assert (seen[0].head_seconds[0, 1], seen[0].up_bits[0, 1], seen[0].backlog[0]) == (0.01, 5e4, 0.25)
