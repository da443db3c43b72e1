"""Attacks find what is there to be found, and less of it where a run protects it."""

import json
from types import SimpleNamespace

import pytest
import torch
from fsl.simulations.attacks.attacked_runs import read_target
from fsl.simulations.fsl_attack import command as attack
from fsl.simulations.fsl_report import command as report
from fsl.simulations.fsl_simulate import command as simulate
from torch.nn import functional as F

from fsl.attacks.hijacking import Hijacker, _positive, adversary
from fsl.attacks.likeness import Pixels, ssim
from fsl.codecs import Int8
from fsl.data import TensorExamples
from fsl.errors import HijackedError
from fsl.files import load_tensors
from fsl.privacy.detector import Watch, label_gap
from fsl.privacy.settings import Detector
from fsl.trainers.uploads import Upload

pytestmark = pytest.mark.slow

UNSPLIT = ("rounds=40", "inner=20", "inputs_lr=0.01", "front_lr=0.01", "samples=8", "magnitude=0")  # not the paper's
QUICK = ["rounds=4", "devices=2", "batch_size=32", "optimizer.lr=0.1", "evaluate_every=4"]
FEW = "samples_per_device=96"  # three steps a round, where nothing has to be learnt


def trained(folder, *arguments):
    assert simulate([*QUICK, f"hydra.run.dir={folder}", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A run without any protection."""
    return trained(tmp_path_factory.mktemp("bare") / "run")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The same with noise at the cut."""
    return trained(tmp_path_factory.mktemp("noisy") / "run", "privacy=cut", "privacy.cut.noise_multiplier=1")


def found(folder, name, *arguments):
    assert attack([str(folder), f"attack={name}", *arguments]) == 0
    return json.loads((folder / "attacks" / f"{name}.json").read_text())["figures"]


# What attacks find.


def test_a_decoder_reads_smashed_data_and_noise_hides_them(bare, noisy, pictures):
    quick = "attack.inversion.steps=150"
    open_, hidden = found(bare, "inversion", quick), found(noisy, "inversion", quick)
    assert open_["mse"] < 0.25 * open_["blind_mse"]
    assert open_["ssim"] > 0.8
    assert hidden["mse"] > 0.8 * hidden["blind_mse"]
    assert hidden["ssim"] < hidden["blind_ssim"] + 0.1
    assert (bare / "attacks" / "inversion.png").stat().st_size > 1000


@pytest.mark.shows
def test_noise_that_hides_one_sight_of_a_row_does_not_hide_many(tmp_path):
    arguments = ["privacy=cut", "privacy.cut.noise_multiplier=0.2", "rounds=12", "optimizer.lr=0.05"]
    folder = trained(tmp_path / "run", *arguments)
    quick = "attack.inversion.steps=300"
    once, always = found(folder, "inversion", quick, "attack.inversion.sights=1"), found(folder, "inversion", quick)
    assert (once["sights"], always["sights"]) == (1, 12)
    assert always["mse"] < 0.6 * once["mse"]
    assert always["ssim"] > once["ssim"] + 0.1


def test_labels_that_stay_are_not_told_and_can_be_guessed_all_the_same(tmp_path):
    u_shaped = trained(tmp_path / "run", "model.cut=[pool1,fc2]", "strategy=splitfed_v3", FEW)
    figures = found(u_shaped, "labels")
    assert set(figures) == {"norm_auc", "direction_accuracy", "chance"}
    assert figures["chance"] < 0.2
    assert figures["direction_accuracy"] > 0.9


def test_an_attack_that_knows_no_tail_refuses_one(tmp_path, capsys):
    u_shaped = trained(tmp_path / "run", "model.cut=[pool1,fc2]", "rounds=1", FEW)
    assert attack([str(u_shaped), "attack=unsplit"]) == 2
    assert "not built for runs with a tail; use labels, inversion or membership" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["splitfed_v1", "splitfed_v3"])
def test_an_adversary_has_the_fronts_of_the_rounds_that_its_victim_trained_in(strategy, tmp_path):
    folder = trained(tmp_path / "run", f"strategy={strategy}", "devices=3", "devices_per_round=2", "rounds=6", FEW)
    target = read_target(folder, 0)
    rounds = target.rounds()
    assert 1 <= len(rounds) < 6
    if strategy == "splitfed_v3":  # its own front is that of its last round
        last = rounds[-1][0].state_dict()
        assert all(torch.equal(last[name], tensor) for name, tensor in target.front.state_dict().items())


def test_an_adversary_sees_what_the_codec_leaves_of_smashed_data(tmp_path):
    target = read_target(trained(tmp_path / "run", "codec=int8", "rounds=1", FEW), 0)
    inputs, _ = target.victims(8)
    seen = target.smashed(inputs, 0)
    with torch.no_grad():
        plain = target.front(inputs)
    codec = Int8()
    assert torch.equal(seen, codec.decode(codec.encode(plain)))
    assert not torch.equal(seen, plain)


def test_inputs_and_weights_are_guessed_that_explain_the_smashed_data(bare):
    figures = found(bare, "unsplit", *(f"attack.unsplit.{option}" for option in UNSPLIT))
    assert figures["unexplained"] < 0.2  # of several explanations, not always the true one


def test_labels_are_read_off_cut_gradients_and_randomized_ones_are_not(bare, tmp_path):
    private = trained(tmp_path / "run", "privacy=labels", "privacy.labels.epsilon=1")
    open_, hidden = found(bare, "labels"), found(private, "labels")
    assert open_["direction_accuracy"] > 0.6
    assert open_["told_accuracy"] == 1.0
    assert hidden["direction_accuracy"] < 0.4
    # Who knows the back has every label that was told, true or not.
    assert open_["matched_accuracy"] > 0.99
    assert hidden["matched_accuracy"] == pytest.approx(hidden["told_accuracy"], abs=0.01)
    assert hidden["told_accuracy"] == pytest.approx(torch.e / (torch.e + 9), abs=0.05)


def test_members_of_an_overfitted_run_are_told_from_others(tmp_path):
    folder = trained(tmp_path / "run", "samples_per_device=40", "local_epochs=30", "model=mlp")
    figures = found(folder, "membership")
    assert figures["member_accuracy"] > 0.99
    assert figures["auc"] > 0.65
    assert 0 < figures["tpr_at_1_percent_fpr"] <= 1


def test_the_unsplit_model_can_be_attacked_for_members_alone(tmp_path, capfd):
    folder = trained(tmp_path / "run", "strategy=fedavg")
    assert 0.45 < found(folder, "membership")["auc"] < 0.65
    assert attack([str(folder), "attack=inversion"]) == 2
    assert "devices of this run train the whole model" in capfd.readouterr().err


@pytest.mark.parametrize("strategy", ["splitfed_v3", pytest.param("sglr", marks=pytest.mark.shows)])
def test_private_fronts_are_attacked_device_by_device(strategy, tmp_path):
    folder = trained(tmp_path / "run", f"strategy={strategy}", "rounds=2")
    figures = found(folder, "inversion", "victim=1", "attack.inversion.steps=100")
    assert figures["mse"] < figures["blind_mse"]


# Hijacking.


def test_devices_that_watch_stop_an_edge_that_hijacks(bare, tmp_path):
    options = ["attack.fsha.rounds=1", "attack.fsha.turns=1"]
    assert found(bare, "fsha", *options)["stopped"] == 0
    watched = trained(tmp_path / "run", "privacy=detector", "rounds=1")
    assert found(watched, "fsha", *options)["stopped"] == 1
    remark = json.loads((watched / "attacks" / "fsha.json").read_text())["remark"]
    assert remark.startswith("round 1, device 0, step ")
    assert "may be hijacking" in remark


def test_a_hijacker_knows_the_noise_and_lets_fronts_stand_still_to_average_it(tmp_path):
    folder = trained(tmp_path / "run", "privacy=cut", "privacy.cut.noise_multiplier=0.2", "rounds=3", FEW)
    figures = found(folder, "fsha", "attack.fsha.turns=1", "attack.fsha.still=2")
    assert figures["sights"] == 2
    quiet = Hijacker(str(folder), std=0.2, clip=1.0, sights=2, still=1)
    quiet.bench = SimpleNamespace(round=2, seed=0)
    quiet._networks, quiet.examples = torch.nn.ModuleDict({"critic": torch.nn.Identity()}), 0
    (reply,) = quiet.step([Upload(0, 0, torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))])
    assert not reply.gradient.any()


def test_a_hijacker_looks_through_the_noise_for_what_a_front_can_imitate():
    clean = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) / 10
    noise = 0.2 * torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    assert _positive(clean.relu() + noise, 0.2)
    assert not _positive(clean + noise, 0.2)
    assert _positive(clean.relu(), 0.0)
    assert not _positive(clean, 0.0)
    # A front of convolutions imitates no dense encoder, however small the pictures.
    networks = adversary((1, 8, 8), (6, 4, 4), positive=True)
    assert all(any(isinstance(m, torch.nn.Conv2d) for m in networks[name].modules()) for name in networks)


def test_a_hijacker_s_encoder_makes_signs_where_fronts_do_and_learns_through_them(tmp_path):
    signs = ["model=binary_vgg5", "model.upto=pool1", "model.cut=pool1", "codec=binary"]
    folder = trained(tmp_path / "run", *signs, "rounds=1", FEW)
    target = read_target(folder, 0)
    assert target.sign
    encoder = adversary((1, 8, 8), target.smashed(target.victims(2)[0], 0).shape[1:], False, target.sign)["encoder"]
    signs = encoder(torch.randn(8, 1, 8, 8))
    assert (signs.abs() == 1).all()
    (signs * torch.randn(signs.shape)).sum().backward()
    assert all(p.grad.any() for p in encoder.last.parameters() if p.dim() > 1)
    figures = found(folder, "fsha", "attack.fsha.turns=1")
    saved = load_tensors(folder / "attacks" / "fsha" / "edge-0.safetensors")
    assert "networks/encoder.sign.0.weight" in saved  # it got to the edge
    assert figures["stopped"] == 0


def test_fronts_of_floats_are_imitated_by_floats(bare):
    assert not read_target(bare, 0).sign


def test_a_hijacker_s_own_rows_go_through_the_codec_as_devices_do():
    hijacker = Hijacker("", std=0.5, sights=3, coded="fsl.codecs.Binary")
    rows = torch.randn(4, 9, requires_grad=True)
    mean, one = hijacker._sent(rows, torch.Generator().manual_seed(0))
    assert (one.abs() == 1).all()
    assert set((3 * mean).round().tolist()[0]) <= {-3, -1, 1, 3}
    assert len(mean.detach().abs().round(decimals=3).unique()) == 2  # sights differ, and their mean is taken
    mean.sum().backward()
    assert torch.equal(rows.grad, torch.ones_like(rows))


def test_a_late_cut_is_hijacked_too_where_a_batch_has_one_row(tmp_path):
    """At a learning rate at which hijacked fronts stay finite."""
    few = ["batch_size=30", "samples_per_device=91", "rounds=1"]
    folder = trained(tmp_path / "run", "model.cut=fc1", *few, "optimizer.lr=0.001")
    assert found(folder, "fsha", "attack.fsha.turns=1")["stopped"] == 0


def test_gradients_that_depend_on_labels_are_told_from_those_that_do_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (64,), generator=generator)
    of_labels = F.one_hot(labels, 10).float() + 0.1 * torch.randn(64, 10, generator=generator)
    assert label_gap(of_labels, labels) > 0.8
    assert abs(label_gap(torch.randn(64, 10, generator=generator), labels)) < 0.1
    assert label_gap(of_labels[:1], labels[:1]) is None


def test_a_device_judges_after_some_steps_and_not_before():
    watch = Watch(Detector(threshold=0.1, after=3), device=4, round=2)
    labels = torch.arange(8) % 2
    gradients = torch.ones(8, 3)
    for step in range(2):
        watch.note_labels(step, labels)
        watch.look(step, gradients)
    watch.note_labels(2, labels)
    with pytest.raises(HijackedError, match="round 2, device 4, step 2: it stopped"):
        watch.look(2, gradients)


@pytest.mark.parametrize(
    ("strategy", "rounds"),
    [
        *((strategy, 3) for strategy in ("splitfed_v1", "psl", "cyclesl")),  # gradients of one, of all, and late ones
        *(
            pytest.param(strategy, 8, marks=pytest.mark.shows)
            for strategy in ("splitfed_v1", "splitfed_v2", "vanilla", "psl", "cyclesl")
        ),
    ],
)
def test_honest_edges_are_not_suspected(strategy, rounds, tmp_path):
    arguments = ["privacy=detector", f"strategy={strategy}", f"rounds={rounds}", "optimizer.lr=0.05"]
    assert simulate([*QUICK, f"hydra.run.dir={tmp_path}", *arguments]) == 0


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("strategy=sglr strategy.phi=1", "averages cut gradients over devices"),
        ("strategy=fedavg", "get no cut gradients"),
    ],
)
def test_gradients_that_say_nothing_of_one_s_labels_are_not_watched(strategy, said, tmp_path, capfd):
    arguments = ["privacy=detector", *strategy.split()]
    assert simulate([*QUICK, f"hydra.run.dir={tmp_path / 'run'}", *arguments]) == 2
    assert said in capfd.readouterr().err


# What is told of it.


def test_a_report_has_utility_beside_what_attacks_found(bare, noisy, tmp_path, capfd):
    for folder in (bare, noisy):
        found(folder, "inversion", "attack.inversion.steps=20")
    assert report([str(bare), str(noisy), "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "inversion: ssim" in printed
    assert "inversion,ssim" in (tmp_path / "attacks.csv").read_text()
    assert (tmp_path / "figures" / "reconstructed-inversion.png").exists()
    assert "<h2>Attacks</h2>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN"], "no attack is named; give attack=NAME, one of fsha, inversion"),
        (["attack=inversion"], "no run to attack"),
        (["RUN", "attack=guess"], "attack=guess: there is no such attack; available are: fsha"),
        (["RUN", "attack=inversion", "attack.inversion.steps=0"], "attack.steps=0: it must be at least 1"),
        (["RUN", "attack=inversion", "attack.inversion.stepps=5"], "there is no key 'attack.inversion.stepps'"),
        (["RUN", "attack=inversion", "victim=2"], "victim=2: "),
        (["nowhere", "attack=inversion"], "nowhere is no run of fsl-simulate"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line(arguments, said, bare, capfd):
    code = attack([str(bare) if argument == "RUN" else argument for argument in arguments])
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert said in lines[0]


# Measures.


def test_equal_pictures_are_equal():
    pictures = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert ssim(pictures, pictures) == pytest.approx(1.0)
    assert ssim(pictures, 1 - pictures) < 0


def test_pixels_go_from_the_least_to_the_greatest_value_of_each_channel():
    inputs = torch.randn(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels = Pixels.of(TensorExamples(inputs, torch.zeros(20, dtype=torch.int64)))
    shown = pixels.shown(inputs)
    assert torch.equal(shown.amin((0, 2, 3)), torch.zeros(3))
    assert torch.allclose(shown.amax((0, 2, 3)), torch.ones(3))
    assert torch.allclose(pixels.inputs(shown), inputs, atol=1e-6)


@pytest.mark.parametrize("strategy", ["splitfed_v1", "splitfed_v3"])
def test_evaluations_measure_what_smashed_data_tell_of_inputs(strategy, tmp_path):
    rows = {}
    for name, arguments in (("bare", []), ("noisy", ["privacy=cut", "privacy.cut.noise_multiplier=2"])):
        folder = trained(tmp_path / name, "evaluate_leakage=200", f"strategy={strategy}", FEW, *arguments)
        rows[name] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows["bare"]["distance_correlation"] > 0.7
    assert rows["noisy"]["distance_correlation"] < 0.6
    assert rows["bare"]["mutual_information"] > rows["noisy"]["mutual_information"] + 0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("fsha.lr=-1", "attack.lr=-1"),
        ("fsha.scale=nan", "attack.scale=nan"),
        ("fsha.critic_lr=0", "attack.critic_lr=0"),
        ("fsha.penalty=-1", "attack.penalty=-1"),
        ("inversion.lr=0", "attack.lr=0"),
        ("unsplit.inputs_lr=inf", "attack.inputs_lr=inf"),
        ("unsplit.front_lr=0", "attack.front_lr=0"),
    ],
)
def test_a_rate_that_cannot_be_is_one_line(option, message, bare, capfd):
    assert attack([str(bare), f"attack={option.partition('.')[0]}", f"attack.{option}"]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fsl-attack")]
    assert message in line
    assert line.endswith("it must be a finite number above 0")
