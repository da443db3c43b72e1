"""Rows that are sure enough leave, the others alone go on, and the outputs are those of each row by itself."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fsl.data import TensorExamples
from fsl.errors import ConfigError, SplitError
from fsl.inference.exits import ConvExit, ExitModel, Thresholds, collect_outputs
from fsl.inference.exits.frozen_features import FrozenFeatures
from fsl.models import ResNet8
from fsl.segments.modes import modes_of
from tests.helpers.early_exits import ROWS, rows_and_labels, small_backbone, small_exit_model

BETAS = [0.5, 0.55]


def counted(model):
    """Rows that each stage and head computes, filled as the model computes."""
    counts = {}

    def watch(name, module):
        def note(module, given, output):
            counts[name] = counts.get(name, 0) + len(given[0])

        module.register_forward_hook(note)

    for stage in model.stages:
        watch(stage.name, stage.module)
    for name, head in zip(model.exits, model.heads):
        watch(f"head of {name}", head)
    return counts


def test_rows_leave_at_the_first_exit_that_is_sure_enough():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    result = model.infer(inputs, BETAS)
    *exits, final = model(inputs)
    for row in range(ROWS):
        sure = [k for k in range(2) if exits[k][row].softmax(0).max() >= BETAS[k]]
        place = sure[0] if sure else 2
        assert result.exits[row] == place
        torch.testing.assert_close(result.outputs[row], (*exits, final)[place][row])
    assert set(result.exits.tolist()) == {0, 1, 2}


def test_by_entropy_rows_leave_that_are_far_from_guessing():
    model, (inputs, _) = small_exit_model(confidence="entropy"), rows_and_labels()
    p = model(inputs)[0].softmax(1)
    sure = 1 + (p * p.log()).sum(1) / math.log(4)
    beta = float(sure.median())
    assert not torch.equal(p.max(1).values >= beta, sure >= beta)
    assert torch.equal(model.infer(inputs, [beta, 2.0]).exits == 0, sure >= beta)


@pytest.mark.parametrize(
    "ask",
    [
        lambda m, x: m.infer(x, BETAS).outputs,
        lambda m, x: m.infer_until("second", x, BETAS).left.outputs,
        lambda m, x: m.infer_from(m.infer_until("first", x, BETAS).onward, BETAS).outputs,
        lambda m, x: m.outputs_at("second", x),
        lambda m, x: m.outputs_at("output", x),
    ],
    ids=["infer", "until", "from", "exit", "output"],
)
def test_inference_is_in_evaluation_and_leaves_a_model_in_training_as_it_was(ask):
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    expected = ask(model, inputs)
    model.train()
    before, modes = copy.deepcopy(model.state_dict()), modes_of(model)
    assert torch.equal(ask(model, inputs), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert modes_of(model) == modes


def test_a_stage_that_works_in_place_leaves_what_a_head_took():
    """Behind the exit a ReLU overwrites its input; the head's outputs and gradients are those without that."""
    torch.manual_seed(0)
    inputs, _ = rows_and_labels()
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))
    model = ExitModel(backbone, {"0": nn.Sequential(nn.Linear(8, 4), nn.Tanh())}, inputs)
    features = backbone[0](inputs)
    expected = [model.heads[0](features), backbone[2](features.relu())]
    torch.testing.assert_close(list(model(inputs)), expected)
    weights = list(model.parameters())
    wanted = torch.autograd.grad(sum(one.square().sum() for one in expected), weights)
    found = torch.autograd.grad(sum(one.square().sum() for one in model(inputs)), weights)
    torch.testing.assert_close(found, wanted)
    kept = FrozenFeatures(model, TensorExamples(inputs, torch.zeros(ROWS)), 8).of(torch.arange(ROWS))
    torch.testing.assert_close(kept.heads[0][0], features.detach())


def test_only_survivors_are_computed_by_later_stages():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    counts = counted(model)
    exits = model.infer(inputs, BETAS).exits
    first, second = int((exits >= 1).sum()), int((exits >= 2).sum())
    assert counts == {
        "first": ROWS,
        "head of first": ROWS,
        "second": first,
        "head of second": first,
        "output": second,
    }


def test_a_batch_gives_what_each_row_gives_by_itself():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    together = model.infer(inputs, BETAS)
    alone = [model.infer(inputs[row : row + 1], BETAS) for row in range(ROWS)]
    torch.testing.assert_close(together.outputs, torch.cat([one.outputs for one in alone]), rtol=0, atol=1e-5)
    assert torch.equal(together.exits, torch.cat([one.exits for one in alone]))
    assert torch.equal(together.macs, torch.cat([one.macs for one in alone]))


@pytest.mark.parametrize("threshold", [1.01, float("inf")])
def test_thresholds_above_one_give_the_plain_model_at_its_cost(threshold):
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    counts = counted(model)
    result = model.infer(inputs, threshold)
    assert torch.equal(result.outputs, model.backbone(inputs))
    assert set(result.macs.tolist()) == {6 * 8 + 8 * 8 + 8 * 4}
    assert [name for name in counts if name.startswith("head")] == []


def test_multiply_adds_of_a_row_are_those_of_stages_and_heads_on_its_way():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    result = model.infer(inputs, BETAS)
    ways = [48 + 32, 48 + 32 + 64 + (8 * 64 + 64 * 4), 48 + 32 + 64 + (8 * 64 + 64 * 4) + 32]
    assert result.macs.tolist() == [ways[k] for k in result.exits]


def test_a_transformer_layer_counts_its_products():
    """Torch's fast path in evaluation is one operation, of which its counter of FLOPs knows nothing."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = ExitModel(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 4)), {"0": "linear"}, torch.randn(3, 5, 8))
    products = 5 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8
    assert model.costs.stages == (products, 160)
    assert model.infer(torch.randn(2, 5, 8), 2.0).macs.tolist() == [products + 160] * 2


def test_a_device_and_an_edge_give_together_what_one_machine_gives():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    whole = model.infer(inputs, BETAS)
    on_device = model.infer_until("first", inputs, BETAS)
    assert on_device.rows.tolist() == (whole.exits == 0).nonzero().flatten().tolist()
    at_edge = model.infer_from(on_device.onward, BETAS)
    outputs, macs = torch.empty_like(whole.outputs), torch.empty_like(whole.macs)
    outputs[on_device.rows], macs[on_device.rows] = on_device.left.outputs, on_device.left.macs
    outputs[on_device.onward.rows], macs[on_device.onward.rows] = at_edge.outputs, at_edge.macs
    assert torch.equal(outputs, whole.outputs)
    assert torch.equal(macs, whole.macs)


def gone_on(**changes):
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    return replace(model.infer_until("first", inputs, BETAS).onward, **changes)


def other_weights():
    model = small_exit_model()
    with torch.no_grad():
        model.backbone.last.bias.add_(1e-3)
    return model


@pytest.mark.parametrize(
    ("edge", "onward", "line"),
    [
        (small_exit_model, lambda: None, "onward=NoneType: give what infer_until returned .* nothing goes on"),
        (small_exit_model, lambda: torch.zeros(3, 8), "onward=Tensor: give what infer_until returned"),
        (other_weights, gone_on, "it comes from another model, or from other weights"),
        (lambda: small_exit_model(seed=1), gone_on, "it comes from another model"),
        (lambda: small_exit_model(confidence="entropy"), gone_on, "it comes from another model"),
        (small_exit_model, lambda: gone_on(digest=""), "it comes from another model"),
        (small_exit_model, lambda: gone_on(begin=0), "it begins at stage 0, and stages behind an exit are 1 to 2"),
        (small_exit_model, lambda: gone_on(begin=3), "it begins at stage 3"),
        (small_exit_model, lambda: gone_on(values=torch.zeros(15, 8, 1)), "behind 'first' the model passes"),
        (small_exit_model, lambda: gone_on(values=torch.zeros(15, 8).double()), "behind 'first' the model passes"),
        (small_exit_model, lambda: gone_on(values=torch.zeros(2, 8)), "2, .* rows, values and macs; one for each"),
    ],
)
def test_an_edge_goes_on_from_what_its_own_model_passes_alone(edge, onward, line):
    with pytest.raises(ConfigError, match=line):
        edge().infer_from(onward(), BETAS)


def test_what_goes_on_is_known_by_the_weights_as_they_are_now():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    before = model.infer_until("first", inputs, BETAS).onward
    with torch.no_grad():
        model.heads[1][1].bias.add_(1.0)
    with pytest.raises(ConfigError, match="other weights"):
        model.infer_from(before, BETAS)
    assert model.infer_until("first", inputs, BETAS).onward.digest == model.digest() != before.digest


class OwnTensors(nn.Module):
    """Computes with a weight and a buffer of its own, which no module of its holds."""

    def __init__(self):
        super().__init__()
        self.enter, self.weight = nn.Linear(6, 5), nn.Parameter(torch.randn(5, 4))
        self.register_buffer("scale", torch.rand(5))

    def forward(self, x):
        return (self.enter(x) * self.scale) @ self.weight


def test_a_model_made_in_inference_mode_goes_on_at_an_edge():
    with torch.inference_mode():
        model, (inputs, _) = small_exit_model(), rows_and_labels()
        onward = model.infer_until("first", inputs, BETAS).onward
        found, expected = model.infer_from(onward, 2.0).outputs, model.backbone(inputs)[onward.rows]
    torch.testing.assert_close(found, expected)


def other_state(model):
    torch.manual_seed(1)
    return {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}


def assigned(backbone):
    backbone.load_state_dict(other_state(backbone), assign=True)


def moved(backbone):
    backbone.double().float().scale.fill_(2.0)


def set_anew(backbone):
    backbone.weight = nn.Parameter(torch.ones(5, 4))


@pytest.mark.parametrize("change", [assigned, moved, set_anew])
def test_tensors_that_take_others_places_are_those_that_are_computed_with(change):
    inputs, _ = rows_and_labels()
    model = ExitModel(OwnTensors(), {"enter": "linear"}, inputs)
    before = model.points.tail("enter", model.points.head("enter", inputs))
    change(model.backbone)
    expected = model.backbone(inputs)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(model.infer(inputs, 2.0).outputs, expected)
    torch.testing.assert_close(model(inputs)[1], expected)
    torch.testing.assert_close(model.points.tail("enter", model.points.head("enter", inputs)), expected)
    assert not any(module.training for module in model.modules())


def test_a_cut_that_is_made_anew_in_training_is_in_training():
    model = ExitModel(Dropping(), {"middle": "linear"}, rows_and_labels()[0]).train()
    model.load_state_dict(other_state(model), assign=True)
    dropped = (model(torch.ones(100, 6))[0] == model.heads[0](model.backbone.middle.bias)).all(1)
    assert 20 < int(dropped.sum()) < 80
    assert model.backbone.training


class Dropping(nn.Module):
    """Drops features by a function, whose mode is the module's in which it is called."""

    def __init__(self):
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(6, 1), nn.Linear(1, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.leave(self.middle(nn.functional.dropout(self.enter(x), 0.5, self.training)))


def test_a_module_that_was_replaced_is_refused():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    model.backbone.second[0] = nn.Linear(8, 8)
    for ask in (lambda: model.infer(inputs, 0.5), lambda: model(inputs), lambda: model.points):
        with pytest.raises(
            ConfigError, match=r"the model's module 'second\.0' is another one since its exits were made"
        ):
            ask()


class Quiet(nn.Module):
    """Works in place where torch does not count it."""

    def forward(self, values):
        values.data.mul_(2.0)
        return values[:, :4]


def test_nothing_goes_on_where_all_rows_leave():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    on_device = model.infer_until("first", inputs, 0.0)
    assert on_device.onward is None
    assert torch.equal(on_device.left.outputs, model(inputs)[0])


def test_an_exit_can_be_asked_alone():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    *exits, final = model(inputs)
    torch.testing.assert_close(model.outputs_at("first", inputs), exits[0])
    torch.testing.assert_close(model.outputs_at("second", inputs), exits[1])
    assert torch.equal(model.outputs_at("output", inputs), final)


def test_the_backbones_parameters_are_its_own():
    backbone = small_backbone()
    model = ExitModel(backbone, {"second": "linear", "first": "linear"}, rows_and_labels()[0])
    assert model.exits == ("first", "second")
    assert {id(p) for p in model.backbone.parameters()} == {id(p) for p in backbone.parameters()}
    parts = [p for stage in model.stages for p in stage.module.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in backbone.parameters()}
    assert not [name for name in model.state_dict() if not name.startswith(("backbone.", "heads."))]


def test_a_copy_in_another_precision_computes_for_itself():
    model, (inputs, _) = small_exit_model(), rows_and_labels()
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other.infer(inputs.double(), 2.0).outputs.abs().max() == 0
    assert model.infer(inputs, 2.0).outputs.abs().max() > 0


class TwoPaths(nn.Module):
    """Passes a mask of its own beside the features, and a skip connection over the middle layer."""

    def __init__(self):
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        entered = self.enter(x)
        return self.leave(self.middle(entered).relu() + entered)


def test_where_several_tensors_cross_the_head_takes_the_first_activation():
    inputs, _ = rows_and_labels()
    model = ExitModel(TwoPaths(), {"middle": "linear"}, inputs)
    crossing = model.stages[0].run(inputs)
    assert len(crossing.tensors) == 2
    torch.testing.assert_close(model(inputs)[0], model.heads[0](crossing.leading))
    whole, part = model.infer(inputs, 2.0), model.infer(inputs[:5], 2.0)
    torch.testing.assert_close(whole.outputs, model.backbone(inputs))
    torch.testing.assert_close(part.outputs, whole.outputs[:5])


class MaskFirst(nn.Module):
    """Passes a mask, which nothing trainable made, in front of the features."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = Masking(), Masked()

    def forward(self, x):
        return self.leave(self.enter(x))


class Masking(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return (x[:, :4] > 0).float() * 2, self.layer(x)


class Masked(nn.Module):
    def forward(self, both):
        return both[0] * both[1]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_mask_is_no_activation_whether_or_not_the_model_is_frozen(frozen):
    inputs, _ = rows_and_labels()
    backbone = MaskFirst().requires_grad_(not frozen)
    model = ExitModel(backbone, {"enter": nn.Identity()}, inputs)
    features = backbone.enter.layer(inputs)
    torch.testing.assert_close(model.infer(inputs, 0.0).outputs, features)
    torch.testing.assert_close(model(inputs)[0], features)


class Scaled(TwoPaths):
    """Has a buffer of its own, which its forward uses behind the first layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((5,), 1 / 3, dtype=torch.float64).float())

    def forward(self, x):
        return self.leave(self.enter(x) * self.scale)


def test_a_move_to_another_precision_takes_buffers_of_the_model_along():
    inputs, _ = rows_and_labels()
    model = ExitModel(Scaled(), {"enter": "linear"}, inputs).double()
    model.backbone.scale.fill_(2.0)
    found = model.infer(inputs.double(), 2.0).outputs
    torch.testing.assert_close(found, model.backbone(inputs.double()))


def test_exits_lie_in_a_residual_network():
    torch.manual_seed(0)
    inputs = torch.randn(6, 3, 16, 16)
    model = ExitModel(ResNet8((3, 16, 16), 4), {"block1": ConvExit(8), "block2": "sl_vit"}, inputs)
    result = model.infer(inputs, 0.0)
    torch.testing.assert_close(result.outputs, model(inputs)[0])
    torch.testing.assert_close(model.infer(inputs, 2.0).outputs, model.backbone(inputs))


def test_new_heads_come_from_the_seed_and_not_from_torchs_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    one, other, third = (small_exit_model(seed=seed).heads.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(one[name], third[name]) for name in one)
    torch.manual_seed(5)
    ExitModel(nn.Sequential(nn.Flatten(), nn.Identity(), nn.ReLU()), {"0": "linear"}, torch.zeros(3, 4))
    assert torch.equal(torch.rand(1), expected)


def test_a_confidence_of_ones_own_decides_for_numbers():
    inputs, _ = rows_and_labels()
    backbone = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 1))
    model = ExitModel(backbone, {"1": "linear"}, inputs, confidence=lambda outputs: outputs[:, 0] * 100)
    first, final = model(inputs)
    result = model.infer(inputs, [2.0])
    assert torch.equal(result.exits, (first[:, 0] * 100 < 2.0).long())
    torch.testing.assert_close(result.outputs, torch.where(first * 100 >= 2.0, first, final))


class FirstRows(nn.Module):
    """Gives as many rows as the example has, whatever comes."""

    def __init__(self, *shape):
        super().__init__()
        self.shape = shape

    def forward(self, values):
        return torch.full((3, *self.shape), 0.5)


@pytest.mark.parametrize("ask", [ExitModel.infer, lambda m, x, t: collect_outputs(m, (x, torch.zeros(len(x)).long()))])
def test_what_heads_predictors_and_confidences_give_is_checked_of_every_batch(ask):
    inputs, _ = rows_and_labels()
    sliced = ExitModel(small_backbone(), {"first": "linear"}, inputs, confidence=lambda outputs: outputs[:, :1])
    with pytest.raises(ConfigError, match=r"your function gives \(24, 1\)"):
        ask(sliced, inputs, 0.5)
    other = ExitModel(small_backbone(), {"first": FirstRows(4)}, inputs)
    with pytest.raises(ConfigError, match=r"the head at 'first' gives \(3, 4\), and the model \(24, 4\)"):
        ask(other, inputs, 0.5)
    bypassed = small_exit_model()
    bypassed.put_predictors([FirstRows(), FirstRows()])
    with pytest.raises(ConfigError, match=r"the predictor at 'first' .* of 24 rows it gives \(3,\)"):
        ask(bypassed, inputs, Thresholds((0.5, 0.5), (0.5, 0.5)))


def test_numbers_have_no_confidence_by_name():
    inputs, _ = rows_and_labels()
    model = ExitModel(nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 1)), {"1": "linear"}, inputs)
    with pytest.raises(ConfigError, match=r"outputs of shape \(B, 1\) are no logits of classes .* give confidence="):
        model.infer(inputs, 0.5)
    assert model.outputs_at("1", inputs).shape == (ROWS, 1)


class First(nn.Module):
    def forward(self, values):
        return values.sigmoid_()[:, 0]


def wrong(exits, **options):
    return lambda: ExitModel(small_backbone(), exits, rows_and_labels()[0], **options)


@pytest.mark.parametrize(
    ("call", "error", "line"),
    [
        (wrong({}), ConfigError, "exits={}: give heads by the names of points"),
        (wrong({"output": "linear"}), ConfigError, "give heads by the names of points"),
        (wrong({"third": "linear"}), SplitError, "cut='third' cannot be made"),
        (wrong({"first": "cnn"}), ConfigError, "exit head 'cnn': allowed are linear, mlp, conv, sl_vit, fusion"),
        (
            wrong({"first": "conv"}),
            ConfigError,
            r"at 'first', exit head 'conv' works over places, and \(B, 8\) has none",
        ),
        (wrong({"first": "fusion"}), ConfigError, "joins several activations, and 1 passes there"),
        (wrong({"first": nn.Linear(8, 3)}), ConfigError, r"the head at 'first' gives \(3, 3\), and the model \(3, 4\)"),
        (wrong({"first": nn.Linear(9, 4)}), ConfigError, r"cannot take values of shape \(3, 8\)"),
        (
            wrong({"first": nn.Sequential(nn.ReLU6(inplace=True), nn.Linear(8, 4))}),
            ConfigError,
            "the head at 'first' changes its input in place",
        ),
        (wrong({"first": Quiet()}), ConfigError, "the head at 'first' changes its input in place"),
        (
            lambda: small_exit_model().put_predictors([First(), First()]),
            ConfigError,
            "the predictor at 'first' changes its input in place",
        ),
        (wrong({"first": "linear"}, confidence="margin"), ConfigError, "confidence='margin': allowed are max_softmax"),
        (lambda: small_exit_model().infer(rows_and_labels()[0], [0.5]), ConfigError, "1 are given, and the exits are"),
        (lambda: small_exit_model().infer(rows_and_labels()[0], {"first": 1}), ConfigError, "one for each of first, s"),
        (lambda: small_exit_model().infer(rows_and_labels()[0], float("nan")), ConfigError, "beta="),
        (lambda: small_exit_model().infer(torch.zeros(0, 6), 0.5), ConfigError, "batch: it has no rows"),
        (lambda: small_exit_model().infer_until("last", torch.zeros(1, 6), 0.5), ConfigError, "one of the exits first"),
        (
            lambda: small_exit_model().infer(rows_and_labels()[0], Thresholds((0.5, 0.5), (0.1, 0))),
            ConfigError,
            "the exits have no predictors",
        ),
        (lambda: Thresholds((0.5,), (1.5,)), ConfigError, "eta=.*: give a probability from 0 to 1"),
    ],
)
def test_wrong_use_is_told_in_a_line(call, error, line):
    with pytest.raises(error, match=line):
        call()
