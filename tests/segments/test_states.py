"""Packed states, exact weighted sums, and their way through Flower records."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fsl.errors import CheckpointError, ConfigError, SplitError, WireError
from fsl.flower.records import (
    check_dtypes,
    record_to_states,
    record_to_sums,
    states_to_record,
    to_array,
    to_numpy,
    totals_to_record,
)
from fsl.importing.spec import Spec
from fsl.round.handover import Passport, pack, unpack
from fsl.round.sessions import Session, SessionSnapshot
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import Layout, Replica, State
from fsl.segments.sums import WeightedSum
from fsl.trainers import Snapshot
from tests.helpers.small import small_model


def random_states(layout, count):
    generator = torch.Generator().manual_seed(3)
    states = []
    for _ in range(count):
        state = layout.zeros()
        for field, view in layout.views(state):
            if field.dtype.is_floating_point:
                scale = 10.0 ** torch.randint(-12, 6, view.shape, generator=generator)
                view.copy_(torch.randn(view.shape, generator=generator) * scale)
            else:
                view.copy_(torch.randint(100, view.shape, generator=generator))
        states.append(state)
    return states


@pytest.fixture
def layout():
    return Layout(small_model("batch"))


def test_pack_and_unpack_give_the_state_dict_back():
    model = small_model("batch")
    layout = Layout(model)
    unpacked = layout.unpack(layout.pack(model.state_dict()))
    assert unpacked.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(unpacked[name], tensor)


def test_every_tensor_starts_at_a_multiple_of_64_elements(layout):
    assert all(field.start % 64 == 0 for field in layout.fields)


def test_pack_refuses_a_state_of_another_model(layout):
    with pytest.raises(CheckpointError, match=r"no tensor 'conv\.0\.weight'"):
        layout.pack({})
    wrong = {**small_model("batch").state_dict(), "conv.0.bias": torch.zeros(5)}
    with pytest.raises(CheckpointError, match=r"'conv\.0\.bias' has shape \(5,\), the model wants \(4,\)"):
        layout.pack(wrong)


def test_replicas_take_turns_in_one_module():
    model = small_model("batch").train()
    layout = Layout(model)
    start = layout.capture()
    replicas = [Replica(layout), Replica(layout)]
    for replica in replicas:
        replica.load(start)
    replicas[0].install()
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in replicas[0].parameters)
    assert all(p.grad is None for p in replicas[1].parameters)
    replicas[1].install()
    changed = layout.unpack(replicas[0].state)["conv.1.running_mean"]
    assert not torch.equal(changed, layout.unpack(replicas[1].state)["conv.1.running_mean"])


def test_a_buffer_that_a_module_replaces_is_collected():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls = self.calls + 1
            return x

    module = Counter()
    replica = Replica(Layout(module))
    replica.install()
    module(torch.zeros(1))
    assert replica.layout.unpack(replica.collect())["calls"] == 1


def test_tied_weights_are_one_tensor():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    layout = Layout(model)
    assert len(layout.fields) == 3
    replica = Replica(layout)
    replica.install()
    assert model[0].weight is model[1].weight is replica.tensors[0]


def exact_mean(values, weights):
    total = sum(Fraction(v) * Fraction(w) for v, w in zip(values, weights))
    return total / sum(map(Fraction, weights))


def test_the_mean_is_the_exact_one_rounded(layout):
    weights = [7, 500, 31, 1024, 3]
    states = random_states(layout, len(weights))
    total = WeightedSum(layout)
    for state, weight in zip(states, weights):
        total.add(state, weight)
    flat = total.mean().flats[torch.float32]
    for index in range(0, len(flat), 37):
        exact = exact_mean([float(s.flats[torch.float32][index]) for s in states], weights)
        assert float(flat[index]) == pytest.approx(float(exact), rel=2**-23, abs=0)
        assert float(flat[index]) == float(np.float32(float(exact)))


def test_the_mean_does_not_depend_on_how_devices_are_grouped(layout):
    weights = [7, 500, 31, 1024, 3, 77, 90]
    states = random_states(layout, len(weights))

    def grouped(bounds):
        whole = WeightedSum(layout)
        for a, b in zip(bounds, bounds[1:]):
            part = WeightedSum(layout)
            for state, weight in zip(states[a:b], weights[a:b]):
                part.add(state, weight)
            whole.merge(part)
        return whole.mean()

    expected = grouped([0, 7]).flats
    for bounds in ([0, 1, 7], [0, 3, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7]):
        for dtype, flat in grouped(bounds).flats.items():
            assert torch.equal(flat, expected[dtype])


def test_one_state_is_its_own_mean(layout):
    (state,) = random_states(layout, 1)
    total = WeightedSum(layout)
    total.add(state, 12345)
    assert all(torch.equal(total.mean().flats[d], flat) for d, flat in state.flats.items())


def test_integer_counters_take_the_largest(layout):
    states = random_states(layout, 3)
    total = WeightedSum(layout)
    for state in states:
        total.add(state, 2)
    counters = torch.stack([s.flats[torch.int64] for s in states])
    assert torch.equal(total.mean().flats[torch.int64], counters.max(0).values)


def test_what_has_no_weight_is_not_added(layout):
    total = WeightedSum(layout)
    total.add(random_states(layout, 1)[0], 0)
    assert not total.weight
    with pytest.raises(ValueError, match="nothing was added"):
        total.mean()


def test_states_survive_a_flower_record(layout):
    (state,) = random_states(layout, 1)
    record = states_to_record({"front": layout}, {"front": state})
    assert all(isinstance(array.numpy(), np.ndarray) for array in record.values())  # Flower can read it
    back = record_to_states(record, {"front": layout, "back": layout})
    assert back.keys() == {"front"}
    assert all(torch.equal(back["front"].flats[d], flat) for d, flat in state.flats.items())


def test_sums_survive_a_flower_record(layout):
    total = WeightedSum(layout)
    for state in random_states(layout, 5):
        total.add(state, 17)
    sums = record_to_sums(totals_to_record({"back": total}), {"back": total.weight}, {"back": layout})
    assert all(torch.equal(sums["back"].mean().flats[d], flat) for d, flat in total.mean().flats.items())
    assert any(low.any() for low in total.low.values())
    assert all(torch.equal(sums["back"].low[d], low) for d, low in total.low.items())


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (3,), "numpy.ndarray", b"\x80\x04not numpy"),
        Array("float32", (4,), "numpy.ndarray", to_array(torch.zeros(3)).data),
        Array("float64", (3,), "numpy.ndarray", to_array(torch.zeros(3)).data),
        Array(np.asfortranarray(np.ones((2, 2)))),
    ],
    ids=["no npy", "wrong shape", "wrong dtype", "fortran order"],
)
def test_arrays_that_are_not_what_they_state_are_refused(array):
    with pytest.raises(WireError):
        to_numpy(array)


def test_a_record_of_another_model_is_refused(layout):
    record = states_to_record({"front": layout}, {"front": layout.zeros()})
    record.pop("front.conv.0.bias")
    with pytest.raises(WireError, match=r"no array 'front\.conv\.0\.bias'"):
        record_to_states(record, {"front": layout})
    other = ArrayRecord({"front.conv.0.weight": to_array(torch.zeros(2))})
    with pytest.raises(WireError, match=r"the model wants"):
        record_to_states(other, {"front": layout})


def test_bfloat16_parameters_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="keep parameters in float32"):
        check_dtypes(Layout(nn.Linear(2, 2).to(torch.bfloat16)))


def test_a_state_of_other_dtypes_packs_apart():
    module = nn.Linear(2, 2).double()
    module.register_buffer("count", torch.tensor(3))
    layout = Layout(module)
    assert set(layout.pack(module.state_dict()).flats) == {torch.float64, torch.int64}
    assert isinstance(layout.zeros(), State)


class Averages(nn.Module):
    """Buffers that forward reassigns: one of the state, one that is not persistent, and one that is not set yet."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("moving", torch.zeros(2), persistent=False)
        self.register_buffer("cache", None)

    def forward(self, x):
        self.mean, self.moving, self.cache = self.mean + x, self.moving + x, x
        return self.mean + self.moving


def segment_with(*values):
    """A runtime of Averages, and a learner for each of these values of the mean."""
    runtime = SegmentRuntime("front", Averages(), torch.device("cpu"))
    learners = [runtime.borrow(OptimizerRecipe(Spec("torch.optim.SGD"), ())) for _ in values]
    for learner, value in zip(learners, values):
        learner.begin(runtime.layout.pack({"mean": torch.full((2,), value)}), 0.1)
    return runtime, learners


def test_a_session_that_begins_anew_has_nothing_of_the_one_before():
    runtime, (one, other) = segment_with(0.0, 0.0)
    one.forward(torch.ones(2), 0)
    one.begin(runtime.layout.pack({"mean": torch.full((2,), 5.0)}), 0.1)  # while its old tensors are in the module
    other.forward(torch.ones(2), 0)
    assert one.forward(torch.ones(2), 0).tolist() == [7.0, 7.0]  # 5 + 1, and 0 + 1 of the moving sum
    assert runtime.layout.unpack(one.state())["mean"].tolist() == [6.0, 6.0]


def test_learners_that_take_turns_have_buffers_of_their_own():
    _, (one, other) = segment_with(0.0, 10.0)
    for _ in range(2):
        first, second = one.forward(torch.ones(2), 0), other.forward(torch.ones(2), 0)
    assert (first[0], second[0]) == (4.0, 14.0)  # 2 + 2, and 12 + 2


def test_a_private_copy_begins_with_first_buffers():
    runtime, (one,) = segment_with(0.0)
    one.forward(torch.ones(2), 0)
    copied = runtime.copied()
    assert copied.moving.tolist() == [0.0, 0.0]
    assert copied.cache is None
    assert one.forward(torch.ones(2), 0).tolist() == [4.0, 4.0]


def test_changed_buffers_beside_the_state_follow_a_device_that_moves():
    runtime, (one, other) = segment_with(0.0, 0.0)
    one.forward(torch.ones(2), 0)
    snapshot = Snapshot(one.state().clone(), {}, 1.0, one.transients())
    passport = Passport("run", 1, 0, "trainer")
    data = pack(SessionSnapshot(Session(0, 1.0), snapshot), passport, runtime.layout)
    came = unpack(data, passport, runtime.layout).trainer
    assert {name: tensor.tolist() for name, tensor in came.transients.items()} == {
        "moving": [1.0, 1.0],
        "cache": [1.0, 1.0],
    }
    other.begin(came.back, 0.1, came.optimizer, came.transients)
    assert other.forward(torch.ones(2), 0).tolist() == one.forward(torch.ones(2), 0).tolist() == [4.0, 4.0]


def test_buffers_that_did_not_change_weigh_nothing_in_a_move():
    assert not segment_with(0.0)[1][0].transients()


@pytest.mark.parametrize(
    ("transients", "reason"), [({"other": torch.zeros(2)}, "no buffer 'other'"), ({"moving": torch.zeros(3)}, "(3,)")]
)
def test_a_move_with_buffers_of_another_model_is_refused(transients, reason):
    runtime, (one,) = segment_with(0.0)
    passport = Passport("run", 1, 0, "trainer")
    snapshot = SessionSnapshot(Session(0, 1.0), Snapshot(one.state().clone(), {}, 1.0, transients))
    with pytest.raises(WireError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        unpack(pack(snapshot, passport, runtime.layout), passport, runtime.layout)


def test_a_replica_s_tensors_have_versions_of_their_own():
    replica = Replica(Layout(small_model("batch")))
    before = [tensor._version for tensor in replica.tensors]
    with torch.no_grad():
        replica.tensors[0].add_(1)
    assert [tensor._version for tensor in replica.tensors[1:]] == before[1:]


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"calls": 1}

    def set_extra_state(self, state):
        pass


def hides_a_key():
    def without_bias(module, state, prefix, metadata):
        del state["bias"]

    model = nn.Linear(2, 2)
    model._register_state_dict_hook(without_bias)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Extra(2, 2), "'_extra_state', which is no parameter or buffer"),
        (hides_a_key, "'bias' is not in the state_dict of Linear, so that it would be lost"),
        (lambda: nn.LazyLinear(2), "'weight' of LazyLinear has no shape yet; run one batch"),
    ],
)
def test_a_state_dict_that_is_not_the_modules_tensors_is_refused(build, reason):
    with pytest.raises(SplitError, match=reason):
        Layout(build())
