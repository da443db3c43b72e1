"""Frozen parameters stay in the module: no state, record or replica has them."""

import copy

import pytest
import torch
from torch import nn

from fsl.errors import CheckpointError, RunError
from fsl.flower.records import record_to_states, states_to_record
from fsl.segments.states import Layout, Replica
from tests.helpers.small import frozen_model


def test_a_state_holds_what_is_trained_and_the_module_the_rest():
    model = frozen_model("batch")
    layout = Layout(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(layout.frozen.tensors)
    state = layout.pack(model.state_dict())
    assert layout.unpack(state).keys() == model.state_dict().keys() - frozen  # buffers are in it
    assert layout.whole(state).keys() == model.state_dict().keys()
    assert layout.bytes + layout.frozen.bytes == sum(t.nbytes for t in model.state_dict().values())
    record = states_to_record({"back": layout}, {"back": state})
    assert not any(name.removeprefix("back.") in frozen for name in record)
    assert record_to_states(record, {"back": layout}).keys() == {"back"}


def test_a_segment_of_which_everything_is_frozen_has_an_empty_state():
    model = nn.Linear(2, 2).requires_grad_(False)
    layout = Layout(model)
    record = states_to_record({"front": layout}, {"front": layout.pack({})})
    assert not record
    assert layout.bytes == 0
    assert record_to_states(record, {"front": layout})["front"].flats == {}


def test_a_digest_tells_other_frozen_weights():
    one, other = Layout(frozen_model()), Layout(frozen_model())
    trained = Layout(frozen_model(seed=1))
    assert one.frozen.digest == other.frozen.digest != trained.frozen.digest
    assert not one.frozen.replaced
    one.frozen.load(frozen_model(seed=1).state_dict())
    assert one.frozen.replaced
    assert one.frozen.digest == trained.frozen.digest
    assert Layout(nn.Linear(1, 1)).frozen.digest == ""


def test_tied_frozen_parameters_are_one_tensor_with_two_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    layout = Layout(model)
    assert set(layout.frozen.tensors) == {"0.weight", "1.weight"}
    assert layout.frozen.bytes == 36


@pytest.mark.parametrize("state", [{}, {"conv.0.weight": torch.zeros(1)}], ids=["missing", "another shape"])
def test_other_frozen_weights_are_refused_by_name(state):
    with pytest.raises(CheckpointError, match=r"'conv\.0\.weight'"):
        Layout(frozen_model()).frozen.load(state)


def changed(how):
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    layout = Layout(model)
    replica = Replica(layout)
    replica.load(layout.pack(model.state_dict()))
    replica.install()
    how(model)
    layout.frozen.refuse_changed()
    replica.collect()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda model: model.weight.requires_grad_(True), "'weight' was frozen when the run began"),
        (lambda model: model.bias.requires_grad_(False), "'bias' was trained when the run began"),
        (lambda model: model.weight.mul_(2), "changed the frozen parameter 'weight'"),
        (lambda model: model.weight.data.mul_(2), "changed the frozen parameter 'weight'"),
        (lambda model: setattr(model, "weight", copy.deepcopy(model.weight)), "changed the frozen parameter 'weight'"),
    ],
    ids=["unfrozen", "frozen later", "in place", "by .data", "replaced"],
)
def test_what_is_frozen_or_trained_stays_so(how, said):
    changed(lambda model: None)
    with pytest.raises(RunError, match=said):
        changed(how)
