"""BottleFit's two stages: what each trains, what it leaves, and that seeds decide all of it."""

import pytest
import torch
from torch import nn

from fsl.codecs import Units, only_units
from fsl.codecs.distillation import distill_head, fine_tune
from fsl.data import TensorExamples
from fsl.errors import ConfigError
from fsl.models import ResNet8, bottlefit
from fsl.seeds import torch_generator

SHAPE = (3, 16, 16)


def examples(rows=24):
    generator = torch_generator(0, "images")
    targets = torch.arange(rows) % 4
    inputs = torch.randn(rows, *SHAPE, generator=generator) + targets.view(-1, 1, 1, 1) / 2
    return TensorExamples(inputs, targets)


class Redrawn(TensorExamples):
    """The same examples, which say that they may be others each time."""

    draws = True


def teacher():
    torch.manual_seed(0)
    return ResNet8(SHAPE, 4)


def student(model=None):
    torch.manual_seed(1)
    return bottlefit(model or teacher(), "block1", SHAPE, channels=3, width=16)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def flags(model):
    return [p.requires_grad for p in model.parameters()] + [m.training for m in model.modules()]


@pytest.mark.parametrize("layers", [(), ("block2", "block3")])
def test_the_first_stage_trains_encoder_and_decoder_alone_and_its_loss_falls(layers):
    model, made = teacher(), student()
    before, taught, was = copied(made), copied(model), flags(made) + flags(model)
    losses = distill_head(made, model, examples(), layers=layers, epochs=4, batch_size=8)
    assert losses[-1] < losses[0]
    assert changed(made, before) == {"encoder", "decoder"}
    assert changed(model, taught) == set()
    assert flags(made) + flags(model) == was


def test_the_first_stages_loss_is_the_sum_of_squared_errors_of_a_sample():
    model, made, data = teacher(), student(), examples(8)
    wanted = model.eval().block1(model.stem(data.inputs))
    named = copied(made)
    given = made.decoder(made.encoder(data.inputs))
    made.load_state_dict(named)
    errors = (given - wanted).square().flatten(1).sum(1).mean().item()
    behind = made.eval().block2(given), model.block2(wanted)
    made.train()
    also = (behind[0] - behind[1]).square().flatten(1).sum(1).mean().item()
    (loss,) = distill_head(made, model, data, epochs=1, batch_size=8)
    assert loss == pytest.approx(errors, rel=1e-5)
    made.load_state_dict(named)
    (loss,) = distill_head(made, model, data, layers=["block2"], epochs=1, batch_size=8)
    assert loss == pytest.approx(errors + also, rel=1e-5)


def test_the_second_stage_trains_what_is_behind_the_cut():
    made = student()
    before, was = copied(made), flags(made)
    losses = fine_tune(made, examples(), epochs=4, batch_size=8, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    assert changed(made, before) == {"decoder", "block2", "block3", "head"}
    assert flags(made) == was


def test_the_second_stages_loss_with_a_teacher_is_half_cross_entropy_and_half_divergence():
    model, made, data = teacher(), student(), examples(8)
    made.requires_grad_(False)
    made.head.requires_grad_(True)
    for module in made.modules():
        module.training = module is made
    logits, told = made(data.inputs), model.eval()(data.inputs)
    own = nn.functional.cross_entropy(logits, data.targets)
    chance = told.softmax(1)
    apart = (chance * (chance.log() - logits.log_softmax(1))).sum(1).mean()
    (loss,) = fine_tune(made, data, teacher=model, epochs=1, batch_size=8)
    assert loss == pytest.approx((own / 2 + apart / 2).item(), rel=1e-5)
    model.train()
    assert fine_tune(made, data, teacher=model, epochs=1) != [loss]
    assert all(module.training for module in model.modules())


def trained(data, made=None):
    model, made = teacher(), made or student()
    distill_head(made, model, data, epochs=2, batch_size=8, seed=5)
    fine_tune(made, data, teacher=model, epochs=2, batch_size=8, seed=5)
    return copied(made)


def test_what_is_kept_of_a_teacher_and_a_frozen_encoder_is_what_is_computed_anew():
    kept, anew = trained(examples()), trained(Redrawn(examples().inputs, examples().targets))
    assert all(torch.allclose(kept[name], anew[name], rtol=1e-3, atol=1e-4) for name in kept)


def test_a_seed_decides_all_of_it_whatever_was_drawn_before():
    once, made = trained(examples()), student()
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = trained(examples(), made)
    assert all(torch.equal(once[name], again[name]) for name in once)
    made = student()
    torch.set_rng_state(state)
    drawn = torch.rand(1)
    torch.set_rng_state(state)
    fine_tune(made, examples(), epochs=1)
    assert torch.equal(torch.rand(1), drawn)
    other, made = copied(made), student()
    fine_tune(made, examples(), epochs=1, seed=1)
    assert changed(made, other)


def test_rates_fall_to_a_tenth_where_they_are_told_to():
    made, still = student(), student()
    fine_tune(made, examples(), epochs=2, decay_at=1, learning_rate=1e-2, batch_size=8)
    fine_tune(still, examples(), epochs=2, learning_rate=1e-2, batch_size=8)
    assert changed(made, copied(still))


def test_a_last_batch_of_one_row_is_left_out():
    made = student()
    assert len(fine_tune(made, examples(9), epochs=1, batch_size=8)) == 1


def test_units_alone_are_trained_where_all_else_is_frozen():
    model = teacher()
    torch.manual_seed(1)
    encoder, decoder = Units([{"channels": 4, "stride": 2, "step": 0.25}]).modules(torch.Size((2, 16, 16, 16)))
    made = nn.Sequential(model.stem, model.block1, encoder, decoder, model.block2, model.block3, model.head)
    before = copied(made)
    losses = fine_tune(only_units(made), examples(), frozen=(), epochs=4, batch_size=8, learning_rate=1e-2)
    assert losses[-1] < losses[0]
    assert changed(made, before) == {"2", "3"}


def test_names_of_no_stage_are_refused():
    with pytest.raises(ConfigError, match="layers: 'block7' is no stage"):
        distill_head(student(), teacher(), examples(), layers=["block7"])
    with pytest.raises(ConfigError, match="layers: 'stem' is no stage"):
        distill_head(student(), teacher(), examples(), layers=["stem"])
    with pytest.raises(ConfigError, match="frozen: the model has no stage 'front'"):
        fine_tune(student(), examples(), frozen=["front"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        fine_tune(student().requires_grad_(False), examples())
