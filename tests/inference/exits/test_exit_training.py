"""Exits are trained with the model, stage by stage, or on a backbone that stays as it is to the bit."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from fsl.data import TensorExamples, digits_with_tones
from fsl.errors import ConfigError, RunError
from fsl.inference.exits import (
    Distillation,
    ExitModel,
    collect_outputs,
    copycat,
    train_exits,
)
from fsl.inference.exits.exit_losses import distance_from, labels_of
from fsl.models import PictureAndTone
from fsl.objective import BCE, MSE, Classification, NextToken, TokenClassification
from fsl.segments import known_rows
from fsl.segments.modes import modes_of
from tests.helpers.early_exits import rows_and_labels, small_backbone, small_exit_model

SGD = torch.optim.SGD
ONCE = {"epochs": 1, "batch_size": 24, "optimizer": SGD, "learning_rate": 0.1}


def states(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    """The stages and heads whose weights or statistics are others."""
    names = (name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name]))
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.parametrize("distillation", [None, Distillation(0.5, 2.0), Distillation(1.0)])
def test_a_frozen_backbone_is_the_same_to_the_bit(distillation):
    model = small_exit_model()
    digest, before = model.points.digest(), states(model)
    train_exits(model, rows_and_labels(), distillation=distillation, epochs=2)
    assert model.points.digest() == digest
    assert changed(model, before) == {"heads.0", "heads.1"}


def test_classifier_wise_trains_heads_on_the_frozen_backbone_by_labels_alone():
    model, other = small_exit_model(), small_exit_model()
    found = train_exits(model, rows_and_labels(), how="classifier_wise", epochs=2)
    assert found == train_exits(other, rows_and_labels(), how="frozen", epochs=2)
    assert changed(model, states(small_exit_model())) == {"heads.0", "heads.1"}


def test_joint_training_descends_the_weighted_sum_of_all_losses():
    model, (inputs, labels) = small_exit_model(), rows_and_labels()
    oracle = copy.deepcopy(model).train()
    loss = sum(w * cross_entropy(one, labels) for w, one in zip((0.5, 2.0, 1.0), oracle(inputs)))
    loss.backward()
    expected = {n: p - 0.1 * p.grad for n, p in oracle.named_parameters()}
    (phase,) = train_exits(model, (inputs, labels), how="joint", weights=(0.5, 2.0, 1.0), **ONCE)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-6)
    assert phase.losses == pytest.approx([loss.item()], rel=1e-5)


def test_in_joint_training_the_final_exit_learns_from_labels_alone():
    model, (inputs, labels) = small_exit_model(), rows_and_labels()
    oracle = copy.deepcopy(model).train()
    *exits, final = oracle(inputs)
    known = final.detach()
    loss = cross_entropy(final, labels) + sum(
        kl_div(one.log_softmax(1), known.softmax(1), reduction="batchmean") for one in exits
    )
    loss.backward()
    train_exits(model, (inputs, labels), how="joint", distillation=Distillation(1.0), **ONCE)
    for (name, parameter), other in zip(model.named_parameters(), oracle.parameters()):
        torch.testing.assert_close(parameter, other - 0.1 * other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_layer_that_two_stages_share_is_trained_with_the_first_alone():
    torch.manual_seed(0)
    layer, (inputs, labels) = nn.Linear(6, 6), rows_and_labels()
    backbone = nn.Sequential(nn.Sequential(layer, nn.Tanh()), nn.Sequential(layer, nn.Tanh()), nn.Linear(6, 4))
    model, after = ExitModel(backbone, {"0": "linear", "1": "linear"}, inputs), []

    class Watched(SGD):
        def __init__(self, parameters, lr):
            after.append(layer.weight.clone())
            super().__init__(parameters, lr=lr)

    train_exits(model, (inputs, labels), how="layer_wise", **{**ONCE, "optimizer": Watched})
    assert not torch.equal(after[0], after[1])
    assert torch.equal(after[1], after[2])
    assert torch.equal(after[1], layer.weight)


def test_statistics_of_frozen_parts_stay_also_where_the_model_was_in_training():
    model = small_exit_model().train()
    before = states(model.backbone)
    train_exits(model, copycat(model, rows_and_labels()[0]), epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())
    first = []

    class Watched(SGD):
        def __init__(self, parameters, lr):
            first.append(model.backbone.first[1].running_mean.clone())
            super().__init__(parameters, lr=lr)

    train_exits(model.train(), rows_and_labels(), how="layer_wise", **{**ONCE, "optimizer": Watched})
    assert torch.equal(first[1], model.backbone.first[1].running_mean)


def test_each_stage_learns_in_its_turn_and_leaves_the_others():
    model, before = small_exit_model(), []

    class Watched(SGD):
        def __init__(self, parameters, lr):
            before.append(states(model))
            super().__init__(parameters, lr=lr)

    phases = train_exits(model, rows_and_labels(), how="layer_wise", **{**ONCE, "optimizer": Watched})
    before.append(states(model))
    assert [phase.name for phase in phases] == ["stage first", "stage second", "stage output"]
    of_phase = [
        {name.rpartition(".")[0] for name in now if not torch.equal(now[name], then[name])}
        for then, now in zip(before, before[1:])
    ]
    assert [{name[:15] for name in names} for names in of_phase] == [
        {"backbone.first.", "heads.0.1"},
        {"backbone.second", "heads.1.1", "heads.1.3"},
        {"backbone.last"},
    ]


@pytest.mark.parametrize("how", ["joint", "layer_wise", "frozen"])
def test_modes_and_what_is_frozen_are_left_as_found(how):
    model = small_exit_model()
    model.backbone.last.weight.requires_grad_(False)
    before, modes = model.backbone.last.weight.clone(), modes_of(model)
    train_exits(model, rows_and_labels(), how=how, **ONCE)
    assert torch.equal(model.backbone.last.weight, before)
    assert modes_of(model) == modes
    assert not model.backbone.last.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batchnorm_that_was_put_into_evaluation_stays_there():
    backbone = small_backbone()
    backbone.first[1].eval()
    model = ExitModel(backbone, {"first": "linear"}, rows_and_labels()[0])
    first, second = backbone.first[1].running_mean.clone(), backbone.second[1].running_mean.clone()
    train_exits(model, rows_and_labels(), how="joint", **ONCE)
    assert torch.equal(backbone.first[1].running_mean, first)
    assert not torch.equal(backbone.second[1].running_mean, second)


@pytest.mark.parametrize("how", ["joint", "layer_wise", "frozen"])
def test_a_module_of_a_head_that_was_put_into_evaluation_stays_there(how):
    def head():
        made = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 4), nn.BatchNorm1d(4))
        made[0].eval()
        return made

    model = ExitModel(small_backbone(), {"first": head(), "second": head()}, rows_and_labels()[0])
    train_exits(model, rows_and_labels(), how=how, **ONCE)
    for still, other in ((one[0], one[2]) for one in model.heads):
        assert still.num_batches_tracked == 0
        assert other.num_batches_tracked == 1


def test_a_head_that_works_in_place_in_training_changes_nothing_for_others():
    """Dropout in place of all: the final exit still sees what the backbone gives."""
    inputs, labels = rows_and_labels()
    head = nn.Sequential(nn.Dropout(0.999, inplace=True), nn.Linear(8, 4))
    model = ExitModel(small_backbone(), {"first": head}, inputs)
    final = cross_entropy(copy.deepcopy(model.backbone).train()(inputs), labels)
    (phase,) = train_exits(model, (inputs, labels), how="joint", weights=(0.0, 1.0), **ONCE)
    assert phase.losses == pytest.approx([final.item()])
    model.train()
    with torch.no_grad():
        expected = copy.deepcopy(model.backbone)(inputs)
        torch.testing.assert_close(model(inputs)[1], expected)


@pytest.mark.parametrize(("how", "phases"), [("joint", 1), ("layer_wise", 3), ("frozen", 1)])
def test_the_rate_is_a_tenth_from_an_epoch_on(how, phases):
    rates = []

    class Watched(SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    options = {"epochs": 3, "batch_size": 12, "optimizer": Watched, "learning_rate": 0.1}
    train_exits(small_exit_model(), rows_and_labels(), how=how, decay_at=2, **options)
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01] * phases)


@pytest.mark.parametrize("how", ["joint", "layer_wise", "frozen"])
def test_training_follows_from_its_seed_alone(how):
    found = []
    for noise in (0, 1):
        model = small_exit_model()
        torch.manual_seed(noise)
        train_exits(model, rows_and_labels(), how=how, epochs=2, batch_size=8, seed=7)
        found.append(states(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class Skipping(nn.Module):
    """Passes a skip connection and places that all rows share over its second layer, which works in place."""

    def __init__(self):
        super().__init__()
        self.enter, self.middle, self.leave = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.places = nn.Parameter(torch.randn(1, 5))

    def forward(self, x):
        entered, places = self.enter(x), self.places * 2
        return self.leave(self.middle(entered).relu_() + entered + places)


def skipping():
    torch.manual_seed(0)
    return ExitModel(Skipping(), {"enter": "linear", "middle": "mlp"}, rows_and_labels()[0])


@pytest.mark.parametrize("make", [small_exit_model, skipping])
@pytest.mark.parametrize("options", [{"distillation": Distillation()}, {"how": "layer_wise"}])
def test_what_is_kept_of_a_frozen_backbone_is_what_it_would_give_again(make, options, monkeypatch):
    kept, again = make(), make()
    phases = train_exits(kept, rows_and_labels(), epochs=2, batch_size=8, **options)
    monkeypatch.setattr(known_rows, "KEPT", 0)
    expected = train_exits(again, rows_and_labels(), epochs=2, batch_size=8, **options)
    for phase, other in zip(phases, expected, strict=True):
        assert phase.losses == pytest.approx(other.losses, rel=1e-5)
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("how", "first", "second"), [("frozen", 1, 1), ("layer_wise", 3 + 2, 3 + 1)])
def test_frozen_stages_are_computed_once(how, first, second):
    """Of three epochs: in a phase of its own a stage is computed in each, behind it once for all of them."""
    model, counts = small_exit_model(), {"first": 0, "second": 0}

    def note(name, module, given, output):
        counts[name] += len(given[0])

    for name in counts:
        getattr(model.backbone, name)[0].register_forward_hook(partial(note, name))
    train_exits(model, rows_and_labels(), how=how, epochs=3, batch_size=8)
    checked = 2  # rows with which the objective is tried
    assert counts == {"first": 24 * first + checked, "second": 24 * second + checked}


def test_distillation_is_a_share_of_the_divergence_from_the_final_exit():
    model, (inputs, labels) = small_exit_model(), rows_and_labels()
    *exits, final = (one.detach() for one in model(inputs))
    expected = sum(
        0.3 * 4 * kl_div((one / 2).log_softmax(1), (final / 2).softmax(1), reduction="batchmean")
        + 0.7 * cross_entropy(one, labels)
        for one in exits
    )
    (phase,) = train_exits(model, (inputs, labels), distillation=Distillation(0.3, 2.0), **ONCE)
    assert phase.losses == pytest.approx([expected.item()], rel=1e-5)


def test_distillation_from_the_final_exit_alone_looks_at_no_label():
    inputs, labels = rows_and_labels()
    models = [small_exit_model(), small_exit_model(), small_exit_model()]
    for model, data in zip(models, (inputs, (inputs, labels), (inputs, (labels + 1) % 4))):
        train_exits(model, data, distillation=Distillation(1.0), epochs=1)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name])
        assert torch.equal(tensor, models[2].state_dict()[name])


def test_copycat_is_training_on_the_labels_that_the_final_exit_gives():
    model, other, (inputs, labels) = small_exit_model(), small_exit_model(), rows_and_labels()
    told = model.outputs_at("output", inputs).argmax(1)
    assert not torch.equal(told, labels)
    found = train_exits(model, copycat(model, (inputs, labels)), epochs=2)
    assert found == train_exits(other, (inputs, told), epochs=2)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


def test_exits_are_trained_for_numbers():
    torch.manual_seed(0)
    inputs, targets = rows_and_labels()[0], torch.randn(24, 1)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    model = ExitModel(backbone, {"1": "linear"}, inputs, confidence="none")
    first, final = (one.detach() for one in model(inputs))
    phase = train_exits(model, (inputs, targets), objective=MSE(), distillation=Distillation(0.5), **ONCE)[0]
    expected = ((first - final).square().mean() + (first - targets).square().mean()) / 2
    assert phase.losses == pytest.approx([expected.item()], rel=1e-5)
    copied = train_exits(model, copycat(model, inputs, objective="regression"), objective="regression", epochs=30)[0]
    assert copied.losses[-1] < 0.8 * phase.losses[0]


def test_labels_of_the_final_exit_are_those_of_its_objective():
    final = torch.tensor([[0.2, -1.0], [-0.3, 2.0]])
    assert labels_of(final, Classification()).tolist() == [0, 1]
    assert labels_of(final, BCE()).tolist() == [[1, 0], [0, 1]]
    assert torch.equal(labels_of(final, MSE()), final)
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(labels_of(tokens, TokenClassification()), tokens.argmax(-1))
    assert distance_from(final, final, Classification(), 3.0) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="fsl does not know how outputs stand for labels"):
        labels_of(final, OwnLoss())


def test_what_a_place_foretells_is_the_label_of_the_place_behind_it():
    """A decoder that foretells each letter for sure has a loss of 0 on its own labels, and padding stays padding."""
    torch.manual_seed(0)
    texts = torch.randint(5, (4, 6))
    backbone = nn.Sequential(nn.Embedding(5, 5), nn.Linear(5, 5))
    model = ExitModel(backbone, {"0": nn.Linear(5, 5)}, texts)
    sure = 1e3 * model.outputs_at("output", texts)
    assert NextToken().loss(sure, labels_of(sure, NextToken())) == pytest.approx(0.0, abs=1e-4)
    padded = texts.clone()
    padded[1, 3:] = -100
    labels = copycat(model, (texts, padded), objective="causal_lm").targets
    assert torch.equal(labels == -100, padded == -100)
    assert torch.equal(labels[0], labels_of(sure, NextToken())[0])


def test_copycat_takes_inputs_by_name_alone():
    batch = digits_with_tones().test.batch(torch.arange(6))[0]
    model = ExitModel(PictureAndTone(width=4), {"stage1": "fusion"}, batch)
    told = model.outputs_at("output", batch).argmax(1)
    for given in (batch, batch.values(), {name: tensor.numpy() for name, tensor in batch.values().items()}):
        assert torch.equal(copycat(model, given).targets, told)


@pytest.mark.parametrize("how", ["joint", "layer_wise", "frozen"])
def test_training_that_diverges_says_so(how):
    with pytest.raises(
        RunError, match=r"diverged in epoch \d: .*; make the model anew, and lower learning_rate=1e\+30"
    ):
        train_exits(small_exit_model(), rows_and_labels(), how=how, optimizer=SGD, learning_rate=1e30)


class Overflowing(SGD):
    """Leaves weights that are not finite, after a loss that was."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["params"][0].data.fill_(float("inf"))


def test_weights_that_diverge_in_the_last_step_are_told():
    with pytest.raises(RunError, match="weights are not finite"):
        train_exits(small_exit_model(), rows_and_labels(), **{**ONCE, "optimizer": Overflowing})


class OwnLoss:
    """No objective of fsl's."""


class Drawn(TensorExamples):
    draws = True


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m, d: train_exits(m, d, how="other"), "how='other'.*classifier_wise"),
        (
            lambda m, d: train_exits(m, d, how="classifier_wise", distillation=Distillation()),
            "distillation: how='classifier_wise' trains heads by labels alone; leave it out, or use how='frozen'",
        ),
        (lambda m, d: train_exits(m, d, epochs=0), "epochs=0, batch_size=32: at least one epoch"),
        (lambda m, d: train_exits(m, d, batch_size=1), "batches of 2 rows"),
        (lambda m, d: train_exits(m, d, learning_rate=0.0), "learning_rate=0.0: a finite number above 0"),
        (lambda m, d: train_exits(m, d, learning_rate=float("nan")), "learning_rate=nan: a finite number above 0"),
        (lambda m, d: train_exits(m, d, optimizer=lambda parameters, lr: None), "optimizer: it makes a NoneType"),
        (lambda m, d: train_exits(m, d, how="joint", weights=[1, float("nan"), 1]), "finite numbers of at least 0"),
        (lambda m, d: train_exits(m, d, how="joint", weights=[0, 0, 0]), "and one above 0"),
        (lambda m, d: copycat(m, d, batch_size=0), "batch_size=0: at least 1"),
        (
            lambda m, d: train_exits(m, (d[0], torch.zeros(24, 4)), objective="mse"),
            "objective=mse: outputs are numbers, and the exits' confidence max_softmax is of classes",
        ),
        (
            lambda m, d: collect_outputs(m, (d[0], torch.zeros(24, 4)), objective="multi_label"),
            "objective=bce: outputs are numbers",
        ),
        (lambda m, d: train_exits(m, d, weights=[1, 1, 1]), "only how='joint' has them"),
        (lambda m, d: train_exits(m, d, how="joint", weights=[1, 1]), "one for each exit and the final one"),
        (lambda m, d: train_exits(m, d, how="layer_wise", distillation=Distillation()), "trains the final exit last"),
        (lambda m, d: train_exits(m, d[0]), "inputs alone have no labels"),
        (
            lambda m, d: train_exits(m, d[0], how="joint", distillation=Distillation(1.0)),
            "inputs alone have no labels",
        ),
        (lambda m, d: copycat(m, d[0][:0]), r"inputs of shape \(0, 6\) have no rows"),
        (lambda m, d: copycat(m, torch.tensor(1.0)), r"inputs of shape \(\) have no rows"),
        (lambda m, d: train_exits(m, (d[0], d[1] + 1)), "the training labels go from 1 to 4, and the model has 4"),
        (lambda m, d: copycat(m, Drawn(*d)), "labels each row once, and these rows are drawn anew"),
        (lambda m, d: train_exits(m.requires_grad_(False), d, how="joint"), "all of the model is frozen"),
        (lambda m, d: train_exits(m.requires_grad_(False), d), "nothing is left to train of heads"),
        (lambda m, d: Distillation(0.0), "a share above 0 and at most 1"),
    ],
)
def test_wrong_use_is_told_in_a_line(call, line):
    with pytest.raises(ConfigError, match=line):
        call(small_exit_model(), rows_and_labels())
