"""What one sample moves, measured: a private step before its noise moves by no more than what the noise is made for."""

import copy
import math

import pytest
import torch
from fsl.strategies import PSL, SGLR, FedAvg, SplitFedV1, SplitFedV2
from torch import nn
from torch.nn import functional as F

from fsl.errors import RunError
from fsl.objective import CrossEntropy
from fsl.privacy import DPSGD, ClientLevel, CutNoise, Privacy, RandomizedLabels, private_cut
from fsl.privacy import noise as noises
from fsl.privacy.private_learner import Privatizer
from fsl.privacy.settings import SegmentPrivacy
from fsl.privacy.whole_updates import clip_update
from fsl.round.edge_server import EdgeServer
from fsl.segments.states import Layout, Replica
from tests.helpers.each_time import each_time
from tests.helpers.runs import run
from tests.helpers.sensitivity import CLIP, STILL, VICTIM, Released, far_away, moves, replaced
from tests.helpers.small import small_model, small_task

pytestmark = pytest.mark.slow


def weighed(outputs, targets):
    return (torch.tensor([1.0, 50.0, 0.1, 3.0])[targets] * F.cross_entropy(outputs, targets, reduction="none")).mean()


LOSSES = {
    "plain": CrossEntropy(),
    "smooth": CrossEntropy(label_smoothing=0.2),
    "weighed": weighed,
    "own": lambda outputs, targets: F.multi_margin_loss(outputs, targets),
}
SAMPLING = {
    "poisson": DPSGD(noise_multiplier=1.0, clip=CLIP),
    "fixed": DPSGD(noise_multiplier=1.0, clip=CLIP, sampling="shuffle"),
}
JOINT = DPSGD(noise_multiplier=1.0, clip=CLIP, clipping="joint")


CASES = [(SplitFedV1(), "plain"), (SplitFedV2(), "smooth"), (PSL(), "weighed"), (PSL(), "own"), (FedAvg(), "weighed")]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize(("strategy", "loss"), CASES, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_a_replaced_sample_moves_each_step_by_at_most_two_clips(strategy, loss, sampling, monkeypatch):
    """Poisson draws of three rows are empty now and then."""
    data, seen = small_task(36), Released(monkeypatch)
    options = {"privacy": Privacy(dp_sgd=SAMPLING[sampling]), "objective": LOSSES[loss], "rounds": 2}
    before = seen.of(data, strategy, **options)
    moved = moves(before, seen.of(far_away(data), strategy, **options))
    assert 0.5 * CLIP < max(moved) <= 2 * CLIP * (1 + 1e-5)
    assert sum(move > 0 for move in moved) <= len(moved) / 3  # only in steps that the sample is in


@pytest.mark.parametrize("strategy", [SplitFedV1(), FedAvg()], ids=lambda s: type(s).__name__)
def test_one_clip_over_both_segments_is_of_both(strategy, monkeypatch):
    data, seen = small_task(36), Released(monkeypatch)
    before = seen.of(data, strategy, privacy=Privacy(dp_sgd=JOINT))
    moved = moves(before, seen.of(far_away(data), strategy, privacy=Privacy(dp_sgd=JOINT)))
    # A step's two releases, of front and back, are those of the same draw.
    squares = sorted((move**2 for move in moved if move), reverse=True)
    steps = len(squares) // 2
    assert sum(squares) <= steps * (2 * CLIP) ** 2 * (1 + 1e-4)
    assert max(moved) <= 2 * CLIP * (1 + 1e-5)


def test_averaged_gradients_move_each_front_by_at_most_two_clips(monkeypatch):
    data, seen = small_task(36), Released(monkeypatch)
    options = {"privacy": Privacy(dp_sgd=SAMPLING["fixed"]), "devices": 4, "batch_size": 3}
    before = seen.of(data, SGLR(phi=0.5), **options)
    moved = moves(before, seen.of(far_away(data), SGLR(phi=0.5), **options))
    assert 0 < max(moved) <= 2 * CLIP * (1 + 1e-5)


def test_with_noise_at_the_cut_and_randomized_labels_the_clip_still_bounds(monkeypatch):
    data, seen = small_task(36), Released(monkeypatch)
    privacy = Privacy(dp_sgd=SAMPLING["poisson"], cut=CutNoise(1.0, clip=2.0), labels=RandomizedLabels(1.0))
    before = seen.of(data, SplitFedV1(), privacy=privacy)
    assert 0 < max(moves(before, seen.of(far_away(data), SplitFedV1(), privacy=privacy))) <= 2 * CLIP * (1 + 1e-5)


@pytest.mark.parametrize(
    ("strategy", "clipping"),
    [
        (SplitFedV1(), "separate"),
        (PSL(), "separate"),
        (FedAvg(), "separate"),
        (SplitFedV1(), "joint"),
        (FedAvg(), "joint"),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_a_sample_without_a_finite_gradient_counts_for_nothing(strategy, clipping, monkeypatch):
    """Its clip factor would be 0, and 0 * inf is no number: the whole release would be lost, and say that it was in."""
    data, seen = small_task(36), Released(monkeypatch)
    dp_sgd = DPSGD(noise_multiplier=1.0, clip=CLIP, clipping=clipping)
    before = seen.of(data, strategy, privacy=Privacy(dp_sgd=dp_sgd))
    broken = replaced(data, torch.full((1, 8, 8), 3e38), data.train.targets[VICTIM])
    moved = moves(before, seen.of(broken, strategy, privacy=Privacy(dp_sgd=dp_sgd)))
    assert 0 < max(moved) <= CLIP * (1 + 1e-5)


@pytest.mark.parametrize("strategy", [SplitFedV1(), FedAvg()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", [1e4, 3e38], ids=["large", "not finite"])
def test_a_device_moves_the_model_by_at_most_its_clip(strategy, value):
    """All of a device's samples are replaced, and its update may be no number."""
    data = small_task(36)
    first = small_model()
    start = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    other = copy.deepcopy(data)
    other.train.inputs.fill_(value)
    options = {"privacy": Privacy(client=ClientLevel(0.0, clip=CLIP)), "rounds": 1, "evaluate_every": 0}
    for task in (data, other):
        found = run(strategy, first, data=task, **options).model.state_dict()
        square = sum(float((found[name].double() - start[name].double()).square().sum()) for name in start)
        assert math.sqrt(square) <= CLIP * (1 + 1e-4)


def test_what_an_edge_gets_is_made_of_noised_rows_alone(monkeypatch):
    """So a codec may encode a batch as a whole: rows without their noise never reach it."""
    told: list[torch.Tensor] = []
    receive = EdgeServer.receive
    monkeypatch.setattr(private_cut, "noised", lambda smashed, noise, source, step: torch.zeros_like(smashed))
    monkeypatch.setattr(
        EdgeServer,
        "receive",
        lambda self, packet: told.extend(t for _, t in packet.smashed.arrays) or receive(self, packet),
    )
    privacy = Privacy(cut=CutNoise(1.0), labels=RandomizedLabels(1.0))
    run(SplitFedV1(), data=small_task(36), rounds=1, up="fsl.codecs.Int8", privacy=privacy)
    assert len(told) > 2
    assert not any(array.float().sub(array.float().flatten()[0]).any() for array in told if array.dtype == torch.uint8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_non_finite_rows_are_cleared_before_every_clip(value):
    weights, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    weights.grad_sample = torch.tensor([[3.0, 4.0], [value, 1.0], [0.0, 0.5]])
    other.grad_sample = torch.tensor([[0.0], [7.0], [0.0]])
    privatizer = Privatizer([weights, other], SegmentPrivacy(1.0, 0.0, expected_rows=4.0, joint=True))
    assert torch.allclose(privatizer.norms(), torch.tensor([25.0, 0.0, 0.25]))
    privatizer.privatize(lambda shape: torch.zeros(tuple(shape)))
    torch.testing.assert_close(4 * weights.grad, torch.tensor([0.6, 0.8 + 0.5]), rtol=1e-5, atol=0)
    assert other.grad.tolist() == [0.0]

    smashed = torch.tensor([[3.0, 4.0], [value, 1.0]], requires_grad=True)
    clipped = private_cut.clipped(smashed, 1.0)
    torch.testing.assert_close(clipped.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    clipped.sum().backward()
    assert smashed.grad.isfinite().all()
    assert smashed.grad[1].tolist() == [0.0, 0.0]

    layout = Layout(nn.Linear(2, 1, bias=False))
    start, end = Replica(layout, torch.device("cpu")).collect().clone(), Replica(layout, torch.device("cpu")).collect()
    next(iter(end.flats.values()))[0] = value
    clip_update([start], [end.clone()], 1.0)
    update = end.clone()
    clip_update([start], [update], 1.0)
    moved = next(iter(update.flats.values())) - next(iter(start.flats.values()))
    assert float(moved.norm()) <= 1.0 + 1e-6


def test_rows_that_do_not_agree_are_no_samples():
    """A step whose parameters have gradients of different numbers of samples is not guessed at."""
    weights, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    weights.grad_sample, other.grad_sample = torch.ones(4, 2), torch.ones(3, 1)
    privatizer = Privatizer([weights, other], SegmentPrivacy(1.0, 1.0, expected_rows=None))
    with pytest.raises(RunError, match="have 3 and 4 rows in one step"):
        privatizer.privatize(lambda shape: torch.zeros(tuple(shape)))


def test_a_secure_number_is_of_four_independent_ones(monkeypatch):
    """Both numbers of a pair by Box and Muller, added, are sqrt(2) times one: an attacker would have to guess two."""
    draws: list = []
    uniform = noises._secure_uniform
    monkeypatch.setattr(noises, "_secure_uniform", lambda count: draws.append(uniform(count)) or draws[-1])
    value = noises.SecureNoise().normal(0)([3, 5])
    used = torch.cat([torch.from_numpy(draw).view(-1, 3, 5) for draw in draws])
    assert len(used) == 8  # a radius and an angle for each of four
    radii, angles = used[0::2], used[1::2]
    four = (-2 * torch.log1p(-radii)).sqrt() * (2 * torch.pi * angles).cos()
    torch.testing.assert_close(value.double(), four.sum(0) / 2, rtol=1e-6, atol=1e-6)


# Large, with a norm beyond float32, and with gradients beyond it. A joint clip needs a back per device.
UNUSABLE = {
    f"{type(strategy).__name__}-{value:g}-{clipping}": (strategy, value, clipping)
    for strategy in (SplitFedV1(), SplitFedV2(), PSL(), FedAvg())
    for value in (1e9, 1e25, 3e38)
    for clipping in (("separate", "joint") if isinstance(strategy, SplitFedV1 | FedAvg) else ("separate",))
}
USED = ["SplitFedV2-1e+25-separate", "PSL-3e+38-separate", "FedAvg-1e+09-separate", "FedAvg-1e+25-joint"]


@pytest.mark.parametrize(
    ("strategy", "value", "clipping"), each_time(UNUSABLE, [*USED, *(name for name in UNUSABLE if "V1" in name)])
)
def test_a_sample_that_cannot_be_used_loses_nobody(strategy, value, clipping):
    """That a device is lost is told to everyone: without this, one sample of 1e9 did it, at an epsilon of .2."""
    data = small_task(36)
    far = replaced(data, torch.full((1, 8, 8), value), data.train.targets[VICTIM])
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=20.0, clipping=clipping))
    for task in (data, far):
        found = run(strategy, data=task, devices=2, rounds=2, batch_size=18, privacy=privacy, optimizer=STILL)
        assert [row.get("lost") for row in found.metrics] == [None, None]
        assert [row["devices"] for row in found.metrics] == [2, 2]
        tensors = [tensor for states in found.states.values() for tensor in states.values()]
        assert all(tensor.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("up", ["fsl.codecs.Float16", "fsl.codecs.BFloat16"])
def test_codecs_lose_nobody_either(up):
    data = small_task(36)
    far = replaced(data, torch.full((1, 8, 8), 3e38), data.train.targets[VICTIM])
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=20.0), losses=True)
    found = run(SplitFedV1(), data=far, devices=2, batch_size=18, up=up, down=up, privacy=privacy)
    assert not any(row.get("lost") for row in found.metrics)


class OwnMeans(SplitFedV1):
    def combine(self, round, totals, previous):
        return {name: total.mean() for name, total in totals.items()}


class AfterNoise(SplitFedV1):
    def combine(self, round, totals, previous):
        return dict(super().combine(round, totals, previous))


def test_means_of_ones_own_have_no_noise():
    privacy = Privacy(client=ClientLevel(20.0))
    with pytest.raises(RunError, match=r"OwnMeans\.combine\(\) made means of its own"):
        run(OwnMeans(), data=small_task(36), privacy=privacy)
    assert run(AfterNoise(), data=small_task(36), privacy=privacy).metrics[-1]["epsilon_model"]
