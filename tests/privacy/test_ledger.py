"""The ledger says what was released, to whom, and what that costs; what has no valid account is refused."""

import json
import math

import pytest
from fsl.simulations.fsl_simulate import command
from fsl.strategies import PSL, SGLR, FedAvg, FedFly, SplitFedV1, SplitFedV3, VanillaSL
from opacus.accountants import PRVAccountant, RDPAccountant

from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.privacy import DPSGD, ClientLevel, CutNoise, NoPeek, Privacy, RandomizedLabels, ledger
from fsl.privacy.claims import ADVERSARIES, ReleaseCounts, Setting, claim
from fsl.privacy.epsilon import Gaussian, combined, epsilon, solve
from fsl.privacy.ledger import Ledger
from fsl.trainers import Replicated
from tests.helpers.places import ROOT
from tests.helpers.runs import run
from tests.helpers.small import small_model

ORACLE = json.loads((ROOT / "tests" / "helpers" / "dp_accounting.json").read_text())
DP, LOCAL = DPSGD(noise_multiplier=1.0), {"cut": CutNoise(4.0), "labels": RandomizedLabels(1.5)}


# What releases cost.


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("rdp", RDPAccountant), ("prv", PRVAccountant)])
@pytest.mark.parametrize("steps", [[(1.0, 0.1, 100)], [(2.0, 0.05, 300), (5.0, 1.0, 20)]])
def test_epsilon_is_that_of_opacus(name, kind, steps):
    accountant = kind()
    for multiplier, rate, count in steps:
        for _ in range(count):
            accountant.step(noise_multiplier=multiplier, sample_rate=rate)
    ours = epsilon(tuple(Gaussian(*step) for step in steps), 1e-5, name)
    assert ours == accountant.get_epsilon(delta=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ORACLE["cases"], ids=str)
def test_composition_agrees_with_another_library(case):
    history = tuple(Gaussian(*gaussian) for gaussian in case["gaussians"])
    pure = case["response"][0] if case["response"] else 0.0
    for accountant, tolerance in (("rdp", 0.02), ("prv", 0.02)):
        ours = epsilon(history, case["delta"], accountant) + pure
        assert ours > case["epsilon"]["pld"] * (1 - 1e-3)  # which is tight: less cannot be true
        named = case["epsilon"].get("rdp" if accountant == "rdp" else "pld")
        if named is not None and not pure:
            assert ours == pytest.approx(named, rel=tolerance)


@pytest.mark.parametrize(("front", "back", "rate", "steps", "expected"), ORACLE["two_clips"])
def test_two_clips_on_one_draw_are_one_release(front, back, rate, steps, expected):
    ours = epsilon((Gaussian(combined([front, back]), rate, steps),), 1e-5, "rdp")
    assert ours == pytest.approx(expected, rel=0.02)


def test_shares_of_the_budget_are_the_whole_together():
    for share in (0.1, 0.5, 0.9):
        dp_sgd = DPSGD(noise_multiplier=1.3, front_share=share)
        assert combined([dp_sgd.multiplier("front"), dp_sgd.multiplier("back")]) == pytest.approx(1.3)


def test_no_noise_costs_everything():
    assert math.isinf(epsilon((Gaussian(0.0, 0.1, 1),), 1e-5, "rdp"))
    assert epsilon((), 1e-5, "rdp") == 0.0


def test_the_noise_multiplier_is_the_least_that_is_enough():
    def cost(multiplier):
        return epsilon((Gaussian(multiplier, 0.1, 100),), 1e-5, "rdp")

    multiplier = solve(3.0, cost)
    assert cost(multiplier) <= 3.0 < cost(multiplier * 0.997)


# Who learns what.


def claims(privacy, *, fronts="averaged", edge=True, spread=1, secure=False, encrypted=False, fixed=()):
    setting = Setting(privacy, fronts, edge, 16, 2, spread, secure, encrypted, fixed)
    return {name: claim(name, setting, ReleaseCounts(160, rounds=5, steps=100, passes=10)) for name in ADVERSARIES}


def unbounded(found):
    return {name for name, one in found.items() if one.epsilon is None}


def cost(multiplier, rate, steps):
    return epsilon((Gaussian(multiplier, rate, steps),), 1e-5, "rdp")


def test_private_gradients_protect_from_all_but_the_edge():
    found = claims(Privacy(dp_sgd=DP))
    assert unbounded(found) == {"edge", "cloud+edge"}
    for name in ("model", "devices", "cloud"):
        assert found[name].epsilon == cost(1.0, 0.1, 100)
    assert "smashed data reach the edge as they are" in found["edge"].unbounded
    assert "labels reach the edge as they are" in found["edge"].unbounded


def test_fixed_batches_are_not_amplified():
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=3.0, sampling="shuffle")))
    assert found["model"].epsilon == cost(3.0, 1.0, 10)
    assert found["model"].epsilon > 2 * cost(3.0, 0.1, 100)


def test_noise_at_the_cut_alone_leaves_labels_and_fronts_bare():
    found = claims(Privacy(cut=CutNoise(4.0)))
    assert unbounded(found) == set(ADVERSARIES) - {"network"}
    assert "labels reach the edge as they are" in found["edge"].unbounded
    assert "the front and the back learnt from samples as they are" in found["model"].unbounded


def test_against_the_edge_a_sample_is_replaced_and_every_release_counts():
    found = claims(Privacy(**LOCAL), fixed=("front",))
    assert found["edge"].epsilon == cost(4.0 / 2, 1.0, 10) + 1.5
    assert "replaced" in found["edge"].neighbours
    # A front that trains learns from the samples themselves: its later rows and its weights tell of them.
    assert unbounded(claims(Privacy(**LOCAL))) == set(ADVERSARIES) - {"network"}


def test_a_back_that_saw_only_protected_data_is_protected():
    found = claims(Privacy(**LOCAL), fronts="private", fixed=("front",))
    assert found["model"].epsilon == found["edge"].epsilon == found["cloud+edge"].epsilon is not None


def test_cloud_and_edge_together_see_who_took_part():
    found = claims(Privacy(dp_sgd=DP, **LOCAL))
    together = (Gaussian(4.0 / 2, 1.0, 100), Gaussian(math.sqrt(2) / 2, 1.0, 100))
    assert found["cloud+edge"].epsilon == pytest.approx(epsilon(together, 1e-5, "rdp") + 1.5)
    assert found["edge"].epsilon == found["cloud+edge"].epsilon  # a Poisson draw may take a sample in every step
    assert found["model"].epsilon == cost(1.0, 0.1, 100)
    assert unbounded(found) == set()


def test_norms_that_travel_are_a_release():
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clipping="joint"), **LOCAL))
    assert "norms of samples' gradients reach the edge as they are, for the clip over both" in found["edge"].unbounded
    assert found["model"].epsilon == cost(1.0, 0.1, 100)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_segment_without_noise_protects_nobody(share):
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, front_share=share)))
    bare = "back" if share else "front"
    assert f"the {bare} learnt from samples as they are" in found["model"].unbounded


def test_a_front_that_stays_needs_noise_as_any_other():
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, front_share=0.0)), fronts="private")
    assert "the front learnt from samples as they are" in found["model"].unbounded


def test_reported_losses_are_a_release():
    found = claims(Privacy(dp_sgd=DP, losses=True))
    assert found["cloud"].unbounded == "training losses are reported to it as they are"
    assert found["model"].epsilon is not None


def test_without_an_edge_nothing_reaches_it():
    found = claims(Privacy(dp_sgd=DP), edge=False)
    assert found["edge"].epsilon == 0.0
    assert unbounded(found) == set()


def test_whole_devices_are_protected_from_all_but_who_adds_the_noise():
    found = claims(Privacy(client=ClientLevel(2.0)))
    assert found["model"].epsilon == cost(2.0, 1.0, 5)
    assert "device" in found["model"].neighbours
    assert "trusted to add it" in found["cloud"].unbounded


def test_averaged_gradients_move_other_fronts():
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=4.0, sampling="shuffle"))
    one, many = (claims(privacy, spread=spread)["cloud"] for spread in (1, 9))
    own = 4.0 * math.sqrt(2)
    assert many.epsilon == pytest.approx(cost(combined([own / (2 * 3), own / 2]), 1.0, 10))
    assert one.epsilon == pytest.approx(cost(4.0, 1.0, 10))
    assert "replaced" in many.neighbours


def test_the_network_sees_what_is_not_encrypted():
    privacy = Privacy(dp_sgd=DP)
    assert claims(privacy, secure=True, encrypted=True)["network"].epsilon == 0.0
    assert "insecure=true" in claims(privacy, secure=True)["network"].unbounded


def test_the_worst_device_is_the_headline():
    ledger = Ledger(Setting(Privacy(dp_sgd=DP), "averaged", True, 16, 1), [160, 64, 640], None)
    ledger.before([0, 1])
    ledger.before([0, 2])
    found = {
        device: claim("model", ledger.setting, released).epsilon for device, released in ledger.release_counts.items()
    }
    assert ledger.claims()["model"].epsilon == max(found.values()) == found[1]
    assert ledger.release_counts[0].steps == 20


# In a run.


@pytest.mark.slow
def test_the_ledger_is_written_before_anything_is_released(tmp_path, monkeypatch):
    from fsl.round.node import Node

    seen, train = [], Node.train

    def look(self, plan, arrays):
        seen.append(json.loads((tmp_path / "run" / "privacy.json").read_text())["devices"]["0"]["steps"])
        return train(self, plan, arrays)

    monkeypatch.setattr(Node, "train", look)
    run(SplitFedV1(), rounds=3, batch_size=8, privacy=Privacy(dp_sgd=DP), out=tmp_path / "run")
    assert seen == [4, 8, 12]


@pytest.mark.slow
def test_each_round_says_what_is_spent_and_keeps_its_losses():
    found = run(SplitFedV1(), rounds=3, privacy=Privacy(dp_sgd=DP))
    spent = [row["epsilon_model"] for row in found.metrics]
    assert spent == sorted(spent)
    assert len(set(spent)) == 3
    assert all(row["epsilon_edge"] is None for row in found.metrics)
    assert all(row["train_loss"] is None for row in found.metrics)
    assert all(row["losses_withheld"] for row in found.metrics)
    told = run(SplitFedV1(), rounds=1, privacy=Privacy(dp_sgd=DP, losses=True))
    assert told.metrics[0]["train_loss"] > 0
    assert told.metrics[0]["epsilon_cloud"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accountant", "clipping"),
    [
        ("rdp", "separate"),
        ("rdp", "joint"),
        # It is asked thirty times, half a second each. Each time: that it is Opacus's, and what a run costs by it.
        pytest.param("prv", "separate", marks=pytest.mark.shows),
    ],
)
def test_a_target_is_reached_and_not_passed(accountant, clipping):
    privacy = Privacy(dp_sgd=DPSGD(target_epsilon=2.0, clipping=clipping), accountant=accountant)
    found = run(SplitFedV1(), rounds=3, devices_per_round=2, batch_size=8, privacy=privacy)
    assert 1.95 < found.metrics[-1]["epsilon_model"] <= 2.0


def test_a_delta_that_is_too_large_is_warned_of(caplog):
    run(SplitFedV1(), rounds=1, privacy=Privacy(dp_sgd=DP, delta=0.05))
    assert "is not below 1/n=0.0312 of the device with 32 samples" in caplog.text


# What has no account.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options", "privacy", "said"),
    [
        (SGLR(phi=0.5), {}, {"dp_sgd": DP}, "a Poisson draw shifts the rows"),
        (SGLR(phi=0.0, alpha=1.0), {}, {"dp_sgd": DP}, "the learning rate would follow"),
        (PSL(weights="samples"), {}, {"dp_sgd": DP}, "use weights=rows"),
        (PSL(), {}, {"client": ClientLevel(1.0)}, "has a back that devices share"),
        (SplitFedV3(), {}, {"client": ClientLevel(1.0)}, "has private fronts"),
        (VanillaSL(), {}, {"dp_sgd": DPSGD(noise_multiplier=1.0, clipping="joint")}, "needs a back per device"),
        (SplitFedV1(), {"up": "fsl.codecs.Int8"}, {"dp_sgd": DP}, "it encodes a batch as a whole"),
        (SplitFedV1(), {"model": small_model("batch")}, {"dp_sgd": DP}, "BatchNorm cannot support training with"),
        (FedFly(), {"model": small_model("batch")}, {"client": ClientLevel(1.0)}, "Use model.norm=group"),
        (SplitFedV1(), {"batch_size": 33}, {"dp_sgd": DP}, "its sample rate would be 1.03"),
        (SplitFedV1(), {}, {"dp_sgd": DPSGD(target_epsilon=1e-4, sampling="shuffle")}, "it cannot be reached"),
        (
            SplitFedV1(),
            {},
            {"dp_sgd": DPSGD(target_epsilon=3.0, front_share=1.0)},
            "the back learnt from samples as they are",
        ),
        (FedAvg(), {}, {"cut": CutNoise(1.0)}, "FedAvg has no cut"),
        (FedAvg(), {}, {"labels": RandomizedLabels(1.0)}, "with FedAvg no labels leave a device"),
        (SplitFedV1(), {}, {"dp_sgd": DP, "nopeek": NoPeek()}, "depends on the others of its batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_has_no_valid_account_is_refused(strategy, options, privacy, said):
    model = options.pop("model", None)
    with pytest.raises(ConfigError, match=said):
        run(strategy, model, privacy=Privacy(**privacy), **options)


class Careless(Replicated):
    """Another step than the one that is known to clip what each sample contributes."""


class Declared(Careless):
    """Its author says so."""

    private = True


class WithTrainer(SplitFedV1):
    """SplitFed V1 with another edge trainer."""

    def __init__(self, kind):
        super().__init__()
        self.kind = f"{__name__}.{kind}"

    def trainer(self, round):
        return Spec(self.kind)


def test_a_trainer_of_ones_own_says_itself_that_it_is_private():
    with pytest.raises(ConfigError, match="Careless inherits private = True, which was said of another step"):
        run(WithTrainer("Careless"), rounds=1, privacy=Privacy(dp_sgd=DP))
    assert run(WithTrainer("Declared"), rounds=1, privacy=Privacy(dp_sgd=DP)).metrics[0]["epsilon_model"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["privacy=dp_sgd", "privacy.dp_sgd.noise_multiplier=-1"], "noise_multiplier=-1: it must be a finite number"),
        (["privacy=dp_sgd", "privacy.dp_sgd.clip=0"], "privacy.dp_sgd.clip=0.0: it must be a finite number above 0"),
        (["privacy=dp_sgd", "privacy.dp_sgd.target_epsilon=3"], "give either noise_multiplier (now 1.0) or"),
        (["privacy=dp_sgd", "privacy.dp_sgd.sampling=poison"], "must be one of poisson, shuffle"),
        (["privacy=dp_sgd", "privacy.dp_sgd.nois=1"], "there is no key 'privacy.dp_sgd.nois'"),
        (["privacy=dp_sgd", "+privacy.dp_sgd.nois=1"], "There are: noise_multiplier, target_epsilon"),
        (["privacy=dp_sgd", "privacy.delta=2"], "privacy.delta=2.0: a probability between 0 and 1"),
        (["privacy=dp_sgd", "privacy.accountant=gdp"], "must be one of rdp, prv"),
        (["privacy=dp_sgd", "model.norm=batch"], "BatchNorm cannot support training with differential privacy"),
        (["privacy=dp_sgd", "samples_per_device=3"], "device 0 holds 3 samples, so its sample rate would be 5.33"),
        (["privacy=dp_sgd", "strategy=sglr"], "a Poisson draw shifts the rows"),
        (["privacy=client", "strategy=splitfed_v2"], "has a back that devices share"),
        (["privacy=[client,dp_sgd]"], "choose one"),
        (["privacy=unknown"], "unknown"),
        (["privacy=cut", "strategy=fedavg"], "has no cut"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line(arguments, said, tmp_path, capfd):
    code = command(["rounds=1", f"hydra.run.dir={tmp_path / 'run'}", *arguments])
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_mechanisms_are_chosen_together(tmp_path):
    assert command(["rounds=1", f"hydra.run.dir={tmp_path}", "privacy=[dp_sgd,cut,labels]", "batch_size=8"]) == 0
    found = json.loads((tmp_path / "privacy.json").read_text())
    assert set(found["mechanisms"]) == {"dp_sgd", "cut", "labels"}
    assert all(found["adversaries"][name]["epsilon"] is not None for name in ADVERSARIES)
    assert found["noise"] == "simulated"


def test_devices_of_equal_counts_are_told_once(monkeypatch):
    setting = Setting(Privacy(dp_sgd=DP), "averaged", True, 16, 1)

    def asked(devices: int) -> int:
        found, calls = Ledger(setting, [160] * devices, None), []
        found.before(range(devices))
        monkeypatch.setattr(ledger, "claim", lambda *given: calls.append(given) or claim(*given))
        assert len(found.report()["devices"]) == devices
        return len(calls)

    assert asked(50) == asked(1)
