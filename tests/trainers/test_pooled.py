"""The pooled edge trainer: PSL and SGLR by hand."""

import itertools

import pytest
import torch
from fsl.simulations.fsl_report import command as report
from fsl.simulations.fsl_simulate import command
from fsl.strategies import PSL, SGLR
from torch import nn

import fsl
from fsl.codecs import Identity
from fsl.errors import ConfigError
from fsl.messages.frames import reply_bytes
from fsl.messages.steps import Upload, UploadPacket
from fsl.objective import CrossEntropy, LossFunction
from fsl.round.edge_server import EdgeServer
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Pooled
from tests.helpers.linear_backs import RATE, began, bench, linear_back, uploads
from tests.helpers.small import small_model, small_task


def own_gradients(back, messages):
    """The gradient of each device's own mean loss, by plain autograd."""
    expected = []
    for upload in messages:
        smashed = upload.smashed.clone().requires_grad_()
        nn.functional.cross_entropy(back(smashed), upload.targets).backward()
        expected.append(smashed.grad)
    return expected


@pytest.mark.parametrize("sizes", [{0: 4, 1: 4, 2: 4}, {0: 1, 1: 5, 2: 2}], ids=["equal", "unequal"])
@pytest.mark.parametrize("weights", ["rows", "samples"])
@pytest.mark.parametrize("by_row", [True, False], ids=["rows of losses", "loss per device"])
def test_a_device_gets_the_gradient_of_its_own_mean_loss(sizes, weights, by_row):
    back, messages = linear_back(), uploads(sizes)
    expected = own_gradients(linear_back(), messages)
    objective = CrossEntropy() if by_row else LossFunction(nn.functional.cross_entropy)
    trainer = began(Pooled(weights=weights), back, {0: 10, 1: 30, 2: 50}, objective)
    replies = trainer.step(messages)
    for reply, gradient, upload in zip(replies, expected, messages, strict=True):
        assert torch.allclose(reply.gradient, gradient, rtol=1e-5, atol=1e-7)
        loss = nn.functional.cross_entropy(linear_back()(upload.smashed), upload.targets)
        assert float(reply.loss) == pytest.approx(loss.item(), rel=1e-6)
        assert not reply.common


@pytest.mark.parametrize(("weights", "shares"), [("rows", [1 / 8, 5 / 8, 2 / 8]), ("samples", [0.2, 0.3, 0.5])])
def test_the_back_steps_on_the_weighted_mean_of_the_devices_losses(weights, shares):
    messages = uploads({0: 1, 1: 5, 2: 2})
    reference = linear_back()
    losses = [nn.functional.cross_entropy(reference(u.smashed), u.targets) for u in messages]
    sum(share * loss for share, loss in zip(shares, losses, strict=True)).backward()
    expected = reference.weight.detach() - RATE * reference.weight.grad
    trainer = began(Pooled(weights=weights), linear_back(), {0: 20, 1: 30, 2: 50})
    trainer.step(messages)
    trained = trainer.learner.state()
    weight = trainer.bench.back.layout.unpack(trained)["weight"]
    assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-7)


def by_hand(gradients, chosen, average):
    total = sum(gradients[k] for k in chosen)
    return total / len(chosen) if average == "mean" else total


@pytest.mark.parametrize("average", ["mean", "sum"])
@pytest.mark.parametrize(("subset", "phi", "size"), [("random", 2 / 3, 2), ("random", 1.0, 3), ("all", 0.1, 3)])
def test_averaged_gradients_of_three_devices_and_two_rows_by_hand(subset, phi, size, average):
    """Smashed data are scalars and a row's loss is w z y: its gradient is w y / rows, told apart by the label y."""

    def loss(outputs, targets):
        return (outputs.squeeze(1) * targets).mean()

    back = nn.Linear(1, 1, bias=False)
    nn.init.constant_(back.weight, 3.0)
    targets = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]), torch.tensor([8.0, 13.0])]
    messages = [Upload(k, 0, torch.ones(2, 1), t) for k, t in enumerate(targets)]
    trainer = began(
        Pooled(phi=phi, subset=subset, average=average), back, dict.fromkeys(range(3), 2.0), LossFunction(loss)
    )
    replies = trainer.step(messages)
    own = [3 * t / 2 for t in targets]  # d/dz mean(3 z y) = 3 y / 2: [1.5, 3], [4.5, 7.5], [12, 19.5]
    chosen = [k for k, reply in enumerate(replies) if reply.common]
    assert len(chosen) == size
    common = by_hand(own, chosen, average)
    if size == 3:
        assert common.tolist() == ([6.0, 10.0] if average == "mean" else [18.0, 30.0])
    for k, reply in enumerate(replies):
        wanted = common if k in chosen else own[k]
        assert torch.allclose(reply.gradient.squeeze(1), wanted, rtol=1e-6)


def test_with_phi_one_all_devices_get_the_same_gradient():
    trainer = began(Pooled(phi=1.0), linear_back(), dict.fromkeys(range(5), 1.0))
    first, *others = trainer.step(uploads(dict.fromkeys(range(5), 3)))
    assert all(torch.equal(first.gradient, reply.gradient) for reply in others)


@pytest.mark.parametrize(
    ("live", "phi", "size"), [(5, 0.5, 3), (3, 0.5, 2), (10, 0.25, 3), (10, 0.24, 2), (3, 1 / 3, 0), (4, 0.0, 0)]
)
def test_the_subset_is_phi_k_rounded_half_up_and_never_of_one(live, phi, size):
    trainer = began(Pooled(phi=phi), linear_back(), dict.fromkeys(range(live), 1.0))
    replies = trainer.step(uploads(dict.fromkeys(range(live), 2)))
    assert sum(reply.common for reply in replies) == size


def test_the_subset_is_drawn_anew_each_step_and_of_live_devices():
    trainer = began(Pooled(phi=0.5), linear_back(), dict.fromkeys(range(6), 1.0))
    drawn = [
        tuple(r.device for r in trainer.step(uploads(dict.fromkeys(range(6), 2), step)) if r.common)
        for step in range(6)
    ]
    assert len(set(drawn)) > 1
    assert {len(chosen) for chosen in drawn} == {3}
    left = trainer.step(uploads(dict.fromkeys((1, 4), 2), step=6))
    assert [reply.common for reply in left] == [False, False]  # half of two is one


@pytest.mark.parametrize(("alpha", "factor"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0), (2.0, 16.0)])
@pytest.mark.parametrize("size", [8, 3])
def test_split_lr_is_the_number_of_live_devices_to_the_alpha(alpha, factor, size):
    trainer = began(Pooled(alpha=alpha), linear_back(), dict.fromkeys(range(5), 1.0))
    trainer.step(uploads(dict.fromkeys(range(4), size)))
    assert trainer.learner.optimizer.param_groups[0]["lr"] == pytest.approx(RATE * factor)


def test_split_lr_counts_unequal_batches_by_their_rows():
    trainer = began(Pooled(alpha=1.0), linear_back(), dict.fromkeys(range(3), 1.0))
    trainer.step(uploads({0: 8, 1: 4, 2: 4}))
    assert trainer.learner.optimizer.param_groups[0]["lr"] == pytest.approx(RATE * 2)


def test_ragged_batches_are_dropped_from_the_average():
    messages = uploads({0: 4, 1: 4, 2: 2})
    own = own_gradients(linear_back(), messages)
    trainer = began(Pooled(phi=1.0), linear_back(), dict.fromkeys(range(3), 1.0))
    replies = trainer.step(messages)
    assert [reply.common for reply in replies] == [True, True, False]
    assert torch.allclose(replies[0].gradient, (own[0] + own[1]) / 2, rtol=1e-5, atol=1e-7)
    assert torch.allclose(replies[2].gradient, own[2], rtol=1e-5, atol=1e-7)
    assert trainer.counts() == {"averaged": 2, "ragged": 1}


def test_ragged_batches_are_padded_with_zeros():
    messages = uploads({0: 4, 1: 2})
    own = own_gradients(linear_back(), messages)
    trainer = began(Pooled(phi=1.0, ragged="pad"), linear_back(), dict.fromkeys(range(2), 1.0))
    replies = trainer.step(messages)
    padded = torch.cat([own[1], torch.zeros(2, 3)])
    assert torch.allclose(replies[0].gradient, (own[0] + padded) / 2, rtol=1e-5, atol=1e-7)
    assert torch.allclose(replies[1].gradient, ((own[0] + padded) / 2)[:2], rtol=1e-5, atol=1e-7)
    assert trainer.counts() == {"averaged": 2, "ragged": 1}


def test_a_broadcasting_link_sends_a_common_gradient_once():
    trainer = Pooled(phi=1.0)
    edge = EdgeServer(0, trainer, Identity, Identity)
    used = bench(linear_back())
    edge.begin(used, used.back.layout.capture())
    for device in range(3):
        edge.open(device, 4.0)
    packets = [
        UploadPacket(device=u.device, step=u.step, smashed=Identity().encode(u.smashed), targets=u.targets)
        for u in uploads({0: 4, 1: 4, 2: 4})
    ]
    replies = edge.step(packets)
    one = reply_bytes(replies[0].gradient)
    counts = edge.counts()
    assert counts["broadcast_saved"] == 2 * one
    assert counts["common_bytes"] == 4 * 3 * 4  # rows, features, bytes of a float
    assert counts["smashed_bytes"] == 3 * 4 * 3 * 4


def test_sglr_reports_bytes_beside_the_papers_formula():
    run = fsl.simulate(
        small_model(), small_task(), strategy=SGLR(phi=0.5), cut="pool", devices=4, rounds=1, batch_size=8
    )
    (row,) = run.metrics
    samples, per_sample, steps = 96, 4 * 4 * 4 * 4, 3
    assert row["up_bytes_paper"] == samples * per_sample
    assert row["down_bytes_paper"] == samples * per_sample / 2 + steps * 8 * per_sample
    assert row["averaged"] == 2 * steps
    message = row["down_bytes"] / (4 * steps)
    assert row["down_bytes_broadcast"] == row["down_bytes"] - steps * message
    # The formula counts no headers; beside it they are small.
    assert row["up_bytes"] == pytest.approx(row["up_bytes_paper"], rel=0.1)
    assert row["down_bytes_broadcast"] == pytest.approx(row["down_bytes_paper"], rel=0.1)
    assert {"accuracy", "accuracy_std", "evaluated_devices"} <= row.keys()


def test_a_phase_averages_only_there():
    strategy = SGLR(phi=1.0, phase=(0.25, 0.75))
    options = {"cut": "pool", "devices": 4, "rounds": 4, "batch_size": 8}
    run = fsl.simulate(small_model(), small_task(), strategy=strategy, **options)
    assert [row["averaged"] > 0 for row in run.metrics] == [False, True, True, False]


def test_a_run_with_a_phase_cannot_be_extended(tmp_path):
    options = {"cut": "pool", "devices": 4, "batch_size": 8, "out": tmp_path / "run"}
    fsl.simulate(small_model(), small_task(), strategy=SGLR(phase=(0.0, 0.5)), rounds=2, **options)
    with pytest.raises(ConfigError, match="phase_of_rounds=2, this one 4"):
        fsl.simulate(small_model(), small_task(), strategy=SGLR(phase=(0.0, 0.5)), rounds=4, resume=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_averaging_changes_fronts_and_keeps_them_apart(alpha):
    options = {
        "cut": "pool",
        "devices": 3,
        "rounds": 1,
        "batch_size": 8,
        "optimizer": Optimizer("torch.optim.SGD", lr=0.1),
    }
    fronts = {}
    for phi in (0.0, 1.0):
        run = fsl.simulate(small_model(), small_task(), strategy=SGLR(phi=phi, alpha=alpha), **options)
        fronts[phi] = [run.front(device)["conv.0.weight"] for device in range(3)]
    for one, other in itertools.combinations(fronts[1.0], 2):
        assert not torch.equal(one, other)  # the inputs differ, and the fronts with them
    assert not torch.equal(fronts[0.0][0], fronts[1.0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 1.5}, "phi=1.5: it is a share of the devices"),
        ({"phi": float("nan")}, "phi=nan"),
        ({"alpha": -1.0}, "alpha=-1.0: it is an exponent"),
        ({"subset": "some"}, "subset='some': allowed are random, all"),
        ({"average": "max"}, "average='max': allowed are mean, sum"),
        ({"ragged": "cut"}, "ragged='cut': allowed are drop, pad"),
        ({"weights": "loss"}, "weights='loss': allowed are rows, samples"),
        ({"phase": [0.5, 0.2]}, r"phase=\[0.5, 0.2\]: it is \[start, end\]"),
    ],
)
def test_a_wrong_option_is_one_clear_line(options, message):
    with pytest.raises(ConfigError, match=message):
        SGLR(**options)


def test_psl_refuses_a_wrong_weight():
    with pytest.raises(ConfigError, match="weights='loss'"):
        PSL(weights="loss")


@pytest.mark.shows
def test_the_comparison_with_the_paper_runs_and_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fsl-simulate"])
    swept = ["experiment=sglr_digits", "strategy=psl,sglr,slr,splitfed_v2,fedavg", "rounds=1", "hydra.sweep.dir=sweep"]
    assert command(["-m", *swept]) == 0
    capsys.readouterr()
    assert report(["sweep", "--out", "report", "--baseline", "PSL"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("PSL", "SGLR", "SplitFedV2", "FedAvg"))
