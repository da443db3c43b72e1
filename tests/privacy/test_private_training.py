"""Private training is what it says: gradients per sample, one per clip, noise of the size that is accounted."""

import copy
import math

import pytest
import torch
from fsl.strategies import PSL, SGLR, FedAvg, FedFly, SplitFedV1, SplitFedV2, VanillaSL
from opacus.grad_sample import GradSampleModule
from torch import nn

import fsl
from fsl.codecs import Identity
from fsl.data import Dirichlet, TaskData, TensorExamples
from fsl.errors import RunError
from fsl.importing.spec import Spec
from fsl.mobility import RandomMobility, ScheduledMobility
from fsl.models import VGG5, LeNet
from fsl.privacy import DPSGD, ClientLevel, CutNoise, NoPeek, Privacy, RandomizedLabels
from fsl.privacy.clip_rules import joint_factors
from fsl.privacy.noise import SecureNoise, SeededNoise, noise_source
from fsl.privacy.private_cut import PrivateCut
from fsl.privacy.private_learner import Privatizer, hookable
from fsl.privacy.settings import SegmentPrivacy
from fsl.seeds import Stream
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Replicated
from tests.helpers.each_time import each_time
from tests.helpers.runs import ADAM, MOMENTUM, SGD, assert_same_bits, assert_same_run, run
from tests.helpers.small import small_model, small_task

pytestmark = pytest.mark.slow

DP = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5))
JOINT = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, clipping="joint"))
FIXED = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, sampling="shuffle"))


def silent(**options):
    return Privacy(dp_sgd=DPSGD(noise_multiplier=0.0, clip=1e9, sampling="shuffle", **options))


# Gradients of samples.


class Seen:
    """The gradients per sample that a run clipped, as vectors, by the parameters that they are of."""

    def __init__(self, monkeypatch):
        self.rows: dict[tuple, list[torch.Tensor]] = {}
        privatize = Privatizer.privatize

        def look(privatizer, noise, batches=1, factors=None):
            privatizer._fill_empty()
            rows = torch.cat([g.flatten(1) for g in privatizer.grad_samples], dim=1)
            shapes = tuple(tuple(p.shape) for p in privatizer.params)
            self.rows.setdefault(shapes, []).append(rows.clone())
            privatize(privatizer, noise, batches, factors)

        monkeypatch.setattr(Privatizer, "privatize", look)


def images(shape, samples, classes=4):
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(classes, (samples,), generator=generator)
    examples = TensorExamples(torch.randn(samples, *shape, generator=generator), targets)
    return TaskData("images", examples, None, classes)


@pytest.mark.parametrize(
    ("strategy", "clipping", "model", "shape"),
    [
        (SplitFedV1, "separate", lambda: LeNet((1, 12, 12), 4, norm="group"), (1, 12, 12)),
        (SplitFedV2, "separate", lambda: LeNet((1, 12, 12), 4, norm="group"), (1, 12, 12)),
        (PSL, "separate", lambda: LeNet((1, 12, 12), 4, norm="group"), (1, 12, 12)),
        (SplitFedV1, "joint", lambda: LeNet((1, 12, 12), 4, norm="group"), (1, 12, 12)),
        pytest.param(  # of more layers of the same kinds
            SplitFedV1, "joint", lambda: VGG5((3, 32, 32), 4, norm="group"), (3, 32, 32), marks=pytest.mark.shows
        ),
    ],
    ids=["V1", "V2", "PSL", "V1-joint", "V1-joint-vgg5"],
)
def test_gradients_per_sample_are_those_of_the_unsplit_model(model, shape, strategy, clipping, monkeypatch):
    torch.manual_seed(0)
    net, task, seen = model(), images(shape, 50), Seen(monkeypatch)
    # Nothing is learnt at rate 0, so every gradient is of the first weights; batches are unequal (Dirichlet).
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clipping=clipping, sampling="shuffle"))
    options = {"devices": 3, "rounds": 1, "batch_size": 7, "partition": Dirichlet(alpha=1.0, min_samples=4)}
    fsl.simulate(
        net, task, strategy=strategy(), optimizer=Optimizer("torch.optim.SGD", lr=0.0), privacy=privacy, **options
    )
    whole = copy.deepcopy(net)
    hookable(whole)
    wrapped = GradSampleModule(whole)
    nn.functional.cross_entropy(wrapped(task.train.inputs), task.train.targets).backward()
    expected = torch.cat([p.grad_sample.flatten(1) for p in whole.parameters()], dim=1)
    front, back = sorted(seen.rows, key=lambda shapes: [tuple(p.shape) for p in whole.parameters()].index(shapes[0]))
    size = sum(math.prod(shape) for shape in front)
    for shapes, part in ((front, expected[:, :size]), (back, expected[:, size:])):
        found = torch.cat(seen.rows[shapes])
        assert len(found) == 50
        # A run orders samples by device and batch: each is found once.
        nearest = torch.cdist(found.double(), part.double()).min(dim=1)
        assert sorted(nearest.indices.tolist()) == list(range(50))
        torch.testing.assert_close(found, part[nearest.indices], rtol=1e-4, atol=1e-5)


def test_one_clip_is_of_both_segments_norms_together():
    torch.testing.assert_close(
        joint_factors(5.0, torch.tensor([9.0, 36.0]), torch.tensor([16.0, 64.0])), torch.tensor([1.0, 0.5])
    )
    weights = nn.Parameter(torch.zeros(2))
    weights.grad_sample = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    privatizer = Privatizer([weights], SegmentPrivacy(clip=1.0, noise_multiplier=0.0, expected_rows=None, joint=True))
    assert privatizer.norms().tolist() == [25.0, 1.0]
    privatizer.privatize(lambda shape: torch.zeros(shape), factors=torch.tensor([0.1, 0.5]))
    torch.testing.assert_close(weights.grad, torch.tensor([0.15, 0.45]))  # a mean over two rows


# Equivalence 9: noise 0 and a clip that no gradient reaches are no privacy at all.


# Each strategy and clip, and each optimizer: a clipped gradient is handed to any optimizer as another gradient is.
@pytest.mark.parametrize(
    ("strategy", "clipping", "optimizer"),
    [
        (SplitFedV1, "separate", SGD),
        (SplitFedV2, "separate", MOMENTUM),
        (PSL, "separate", ADAM),
        (VanillaSL, "separate", MOMENTUM),
        (FedAvg, "separate", ADAM),
        (SplitFedV1, "joint", ADAM),  # it needs a back per device
        (FedAvg, "joint", MOMENTUM),
    ],
)
def test_without_noise_and_clip_it_is_training_as_ever(strategy, clipping, optimizer):
    options = {"optimizer": optimizer, "rounds": 2, "partition": Dirichlet(alpha=1.0, min_samples=8)}
    plain = run(strategy(), small_model(dropout=0.3), **options)
    private = run(strategy(), small_model(dropout=0.3), privacy=silent(clipping=clipping), **options)
    assert sum(1 for _ in plain.metrics) == 2
    for segment, states in plain.states.items():
        for name, tensor in states.items():
            # Adam divides by the size of gradients that are nearly zero.
            torch.testing.assert_close(private.states[segment][name], tensor, rtol=1e-4, atol=1e-5)


# A split model learns what the unsplit one does from the same draws.


@pytest.mark.parametrize(
    ("privacy", "optimizer"),
    [(DP, SGD), (DP, ADAM), (JOINT, MOMENTUM), (FIXED, SGD), (FIXED, ADAM)],
    ids=["poisson-sgd", "poisson-adam", "joint-momentum", "fixed-sgd", "fixed-adam"],
)
def test_splitfed_v1_is_private_fedavg(privacy, optimizer):
    options = {"optimizer": optimizer, "privacy": privacy, "batch_size": 8}
    split = run(SplitFedV1(), small_model(dropout=0.3), **options)
    whole = run(FedAvg(), small_model(dropout=0.3), **options)
    for segment in split.states:
        assert_same_bits(split.states[segment], whole.states[segment])


# The result depends neither on where it was computed, nor on whether it was interrupted.


CASES = {
    "poisson": (SplitFedV1, DP),
    "joint": (SplitFedV1, JOINT),
    "v2": (SplitFedV2, DP),
    "psl": (PSL, DP),
    "local": (SplitFedV1, Privacy(cut=CutNoise(0.5), labels=RandomizedLabels(2.0))),
    "client": (SplitFedV1, Privacy(client=ClientLevel(0.5))),
    "client-whole": (FedAvg, Privacy(client=ClientLevel(0.5))),
    "nopeek": (SplitFedV1, Privacy(nopeek=NoPeek(0.5))),
}


# What nodes draw, and what each keeps of a run: steps apart and together, labels, whole devices.
@pytest.mark.parametrize(("strategy", "privacy"), each_time(CASES, ["poisson", "joint", "psl", "local", "client"]))
def test_how_many_nodes_share_the_work_changes_nothing(strategy, privacy):
    options = {"devices": 4, "edges": 2, "batch_size": 8, "privacy": privacy}
    assert_same_run(run(strategy(), **options), run(strategy(), nodes=3, **options))


@pytest.mark.slow
def test_nodes_elsewhere_compute_the_same(elsewhere):
    every = Privacy(DPSGD(noise_multiplier=0.5), cut=CutNoise(0.5), labels=RandomizedLabels(2.0))
    options = {"devices": 4, "edges": 2, "batch_size": 4, "privacy": every}
    assert_same_run(run(PSL(), **options), run(PSL(), nodes=2, backend=elsewhere, **options))


@pytest.mark.parametrize(("strategy", "privacy"), each_time(CASES, ["poisson", "joint", "v2", "local", "client-whole"]))
def test_stopped_and_resumed_equals_never_stopped(strategy, privacy, tmp_path):
    options = {"batch_size": 8, "privacy": privacy}
    never = run(strategy(), rounds=2, out=tmp_path / "never", **options)
    run(strategy(), rounds=1, out=tmp_path / "stopped", **options)
    assert_same_run(never, run(strategy(), rounds=2, out=tmp_path / "stopped", resume=True, **options))
    assert (tmp_path / "never" / "privacy.json").read_text() == (tmp_path / "stopped" / "privacy.json").read_text()


@pytest.mark.parametrize("privacy", [DP, FIXED, CASES["local"][1]], ids=["poisson", "fixed", "local"])
def test_moves_change_nothing(privacy):
    options = {"edges": 3, "batch_size": 4, "privacy": privacy, "optimizer": ADAM}
    still, moved = run(FedFly(), **options), run(FedFly(), mobility=RandomMobility(0.9), **options)
    assert sum(row["moves"] for row in moved.metrics) > 0
    for segment in still.states:
        assert_same_bits(still.states[segment], moved.states[segment])
    assert [row["epsilon_model"] for row in still.metrics] == [row["epsilon_model"] for row in moved.metrics]


def test_steps_that_are_done_again_are_paid_again():
    options = {"edges": 3, "batch_size": 4, "privacy": DP}
    still = run(FedFly(), **options)
    again = run(FedFly(on_move="restart"), mobility=RandomMobility(0.9), **options)
    assert again.metrics[-1]["epsilon_model"] > still.metrics[-1]["epsilon_model"]


def test_rows_that_come_first_after_each_of_two_restarts_are_paid_each_time():
    moves = [{"device": 0, "round": 1, "fraction": share, "edge": edge} for share, edge in ((0.25, 1), (0.5, 2))]
    options = {"edges": 3, "batch_size": 4, "rounds": 1, "privacy": FIXED}
    still = run(FedFly(), **options | {"rounds": 3})
    again = run(FedFly(on_move="restart"), mobility=ScheduledMobility(moves), **options)
    (row,) = again.metrics
    assert row["moves"] == 2
    assert row["wasted_steps"] <= 8  # a round's steps: all of them seem to have been done once more at most
    assert row["epsilon_model"] == still.metrics[-1]["epsilon_model"]  # the first rows are in three releases


# Draws.


BOTH = Privacy(cut=CutNoise(0.5), dp_sgd=DP.dp_sgd)


@pytest.mark.parametrize(("strategy", "privacy"), [(SplitFedV1, DP), (SplitFedV2, BOTH), (PSL, BOTH), (FedAvg, DP)])
def test_an_empty_draw_is_a_step_like_any_other(strategy, privacy):
    # Of 32 samples at rate 1/32 a third of the batches are empty.
    found = run(strategy(), batch_size=1, rounds=1, privacy=privacy)
    assert all(torch.isfinite(t).all() for state in found.states.values() for t in state.values())
    assert found.metrics[0]["examples"] == 96


def test_poisson_draws_take_each_sample_with_its_rate(monkeypatch):
    sizes = []
    privatize = Privatizer.privatize
    monkeypatch.setattr(
        Privatizer,
        "privatize",
        lambda self, noise, batches=1, factors=None: (
            self._fill_empty(),
            sizes.append(len(self.grad_samples[0])),
            privatize(self, noise, batches, factors),
        ),
    )
    run(VanillaSL(), devices=1, batch_size=8, rounds=20, privacy=DP)
    draws = torch.tensor(sizes[::2], dtype=torch.float64)  # front and back see the same
    assert sizes[::2] == sizes[1::2]
    rate, samples = 8 / 96, 96
    assert abs(draws.mean() - 8) < 4 * math.sqrt(samples * rate * (1 - rate) / len(draws))
    assert abs(draws.var() / (samples * rate * (1 - rate)) - 1) < 0.3


@pytest.mark.parametrize("source", [SeededNoise(Stream(0, "test")), SecureNoise()], ids=["seeded", "secure"])
def test_noise_is_normal_and_uniform(source):
    normal = source.normal(0)([1_000_000]).double()
    assert abs(normal.mean()) < 0.005
    assert abs(normal.var() - 1) < 0.01
    assert abs((normal**4).mean() - 3) < 0.05
    uniform = source.uniform(0)([1_000_000])
    assert uniform.dtype == torch.float64
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.002
    assert abs(uniform.var() * 12 - 1) < 0.01


def test_secure_noise_is_never_the_same():
    assert not torch.equal(SecureNoise().normal(0)([8]), SecureNoise().normal(0)([8]))


@pytest.mark.parametrize("expected", [None, 5.0])
def test_the_noise_of_a_step_has_the_variance_that_is_accounted(expected):
    from fsl.privacy.settings import SegmentPrivacy

    parameter = nn.Parameter(torch.zeros(200, 1000))
    privatizer = Privatizer([parameter], SegmentPrivacy(clip=3.0, noise_multiplier=0.7, expected_rows=expected))
    parameter.grad_sample = torch.zeros(4, 200, 1000)
    privatizer.privatize(SeededNoise(Stream(0, "test")).normal(0))
    rows = 4 if expected is None else expected
    assert abs(parameter.grad.var() * rows**2 / (0.7 * 3.0) ** 2 - 1) < 0.02


def test_the_noise_of_a_run_is_the_declared_one(monkeypatch):
    """What a run's steps add, by the difference to the same steps without noise."""
    added = []
    add = Privatizer.add_noise

    def look(privatizer):
        add(privatizer)
        std = privatizer.noise_multiplier * privatizer.max_grad_norm
        added.extend(((p.grad - p.summed_grad) / std).flatten() for p in privatizer.params)

    monkeypatch.setattr(Privatizer, "add_noise", look)
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=1.2, clip=0.3, back_clip=2.0, front_share=0.25))
    run(SplitFedV1(), batch_size=4, rounds=4, privacy=privacy)
    values = torch.cat(added).double()
    assert len(values) > 50_000
    assert abs(values.var() - 1) < 0.02
    assert privacy.segment("front", 4).noise_multiplier == pytest.approx(2.4)
    assert privacy.segment("back", 4).noise_multiplier == pytest.approx(1.2 / math.sqrt(0.75))


def test_no_gradient_is_longer_than_the_clip(monkeypatch):
    longest = []
    clip = Privatizer.clip_and_accumulate

    def look(privatizer):
        rows = [g.flatten(1) for g in privatizer.grad_samples]
        clip(privatizer)
        if len(rows[0]) == 1:
            total = math.sqrt(sum(float(p.summed_grad.square().sum()) for p in privatizer.params))
            longest.append(total / privatizer.max_grad_norm)

    monkeypatch.setattr(Privatizer, "clip_and_accumulate", look)
    run(SplitFedV1(), batch_size=1, rounds=1, privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clip=0.01)))
    assert len(longest) > 20
    assert max(longest) <= 1 + 1e-4
    assert max(longest) > 0.9


# At the cut.


def test_smashed_data_are_clipped_and_noised():
    cut = CutNoise(noise_multiplier=0.5, clip=2.0)
    source = noise_source(False, 0, "cut-noise", device=3, round=1)
    end = PrivateCut(Identity(), Identity(), noise=cut, source=source)

    def sent(step):
        return Identity().decode(end.encode(step, clipped, torch.zeros(400)))

    smashed = torch.randn(400, 8, 5, 5) * 10
    clipped = end.leave(smashed, smashed)
    assert clipped.flatten(1).norm(dim=1).max() <= 2.0 * (1 + 1e-6)
    small = torch.full((2, 4), 0.1)
    torch.testing.assert_close(end.leave(small, small), small)
    noise = sent(0) - clipped
    assert abs(noise.var() / (0.5 * 2.0) ** 2 - 1) < 0.02
    assert torch.equal(noise, sent(0) - clipped)
    assert not torch.equal(noise, sent(1) - clipped)


def test_the_edge_sees_no_row_that_is_not_noised(monkeypatch):
    from fsl.round.edge_server import EdgeServer

    received, step = [], EdgeServer.receive
    monkeypatch.setattr(EdgeServer, "receive", lambda self, packet: received.append(step(self, packet)) or received[-1])
    run(SplitFedV1(), rounds=1, privacy=Privacy(cut=CutNoise(0.0, clip=0.5), labels=RandomizedLabels(1.0)))
    assert max(float(u.smashed.flatten(1).norm(dim=1).max()) for u in received) <= 0.5


# Labels.


def test_a_label_is_true_as_often_as_it_is_said_to_be(monkeypatch):
    from fsl.privacy.randomized_labels import draw_shifts, truthful

    shifts = draw_shifts(200_000, 10, 1.5, SeededNoise(Stream(0, "labels")))
    true = math.exp(1.5) / (math.exp(1.5) + 9)
    assert truthful(10, 1.5) == pytest.approx(true)
    counts = torch.bincount(shifts, minlength=10) / len(shifts)
    assert counts[0] == pytest.approx(true, abs=0.005)
    assert torch.allclose(counts[1:], torch.full((9,), (1 - true) / 9).to(counts), atol=0.005)


def test_a_label_is_drawn_once_and_kept(monkeypatch):
    from fsl.round.edge_server import EdgeServer

    told: dict[bytes, set[int]] = {}
    receive = EdgeServer.receive

    def look(self, packet):
        upload = receive(self, packet)
        for row, label in zip(upload.smashed, upload.targets.tolist(), strict=True):
            told.setdefault(row.numpy().tobytes(), set()).add(label)
        return upload

    monkeypatch.setattr(EdgeServer, "receive", look)
    privacy = Privacy(labels=RandomizedLabels(0.5))
    run(SplitFedV1(), rounds=3, local_epochs=2, optimizer=Optimizer("torch.optim.SGD", lr=0.0), privacy=privacy)
    task = small_task()
    assert len(told) == 96
    assert all(len(labels) == 1 for labels in told.values())
    front = small_model()[:2]
    smashed = [front(x[None])[0].detach() for x in task.train.inputs]
    truth = {z.numpy().tobytes(): y for z, y in zip(smashed, task.train.targets.tolist(), strict=True)}
    wrong = sum(label not in labels for row, labels in told.items() if (label := truth.get(row)) is not None)
    assert 20 < wrong < 80


def test_an_edge_corrects_for_what_it_knows_of_the_labels():
    one, other = (run(SplitFedV1(), privacy=Privacy(labels=RandomizedLabels(1.0, correct=c))) for c in (True, False))
    assert any(not tensor.equal(other.states["back"][name]) for name, tensor in one.states["back"].items())


def test_the_correction_finds_the_truth():
    """Trained against randomized labels of one input, it tells the chances of the true ones."""
    from fsl.privacy.randomized_labels import CorrectedCrossEntropy, draw_shifts

    generator = torch.Generator().manual_seed(0)
    truth = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 40_000, replacement=True, generator=generator)
    told = (truth + draw_shifts(len(truth), 3, 1.0, SeededNoise(Stream(0, "labels")))) % 3
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=50)
    objective = CorrectedCrossEntropy(1.0)

    def closure():
        optimizer.zero_grad()
        loss = objective.loss(logits.expand(len(told), 3), told)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.softmax(1)[0].detach(), torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)


# Whole devices.


@pytest.mark.parametrize("strategy", [SplitFedV1, FedAvg])
def test_a_whole_update_is_clipped_and_its_mean_noised(strategy):
    start = {k: v.clone() for k, v in small_model().state_dict().items()}

    def update(privacy, devices):
        found = run(strategy(), rounds=1, devices=devices, privacy=privacy)
        after = {k: v for state in found.states.values() for k, v in state.items()}
        return torch.cat([(after[k] - start[k]).flatten() for k in start]).double()

    free = update(None, 1)
    clipped = update(Privacy(client=ClientLevel(0.0, clip=float(free.norm()) / 4)), 1)
    torch.testing.assert_close(clipped, free / 4, rtol=1e-3, atol=1e-6)
    assert update(Privacy(client=ClientLevel(0.0, clip=1e-3)), 3).norm() <= 1e-3 * (1 + 1e-3)
    noisy, bare = (update(Privacy(client=ClientLevel(s, clip=3.0)), 3) for s in (2.0, 0.0))
    noise = noisy - bare
    assert noise.var() == pytest.approx((2.0 * 3.0 / 3) ** 2, rel=0.1)


def test_devices_count_alike_where_they_are_protected_as_a_whole():
    """Whoever holds more would otherwise count more than its clip."""
    options = {"rounds": 1, "partition": Dirichlet(alpha=0.3, min_samples=2), "devices": 2}
    one = run(SplitFedV1(), **options, privacy=Privacy(client=ClientLevel(0.0, clip=1e9)))
    other = run(SplitFedV1(), **options)
    assert not torch.equal(one.states["back"]["head.1.weight"], other.states["back"]["head.1.weight"])


# NoPeek.


def test_nopeek_lowers_the_correlation_of_inputs_and_smashed_data():
    from fsl.privacy.leakage import distance_correlation

    inputs = small_task().test.inputs

    def correlation(privacy):
        found = run(VanillaSL(), devices=1, rounds=20, optimizer=Optimizer("torch.optim.SGD", lr=0.2), privacy=privacy)
        return float(distance_correlation(inputs, found.model[:2].eval()(inputs).detach()))

    assert correlation(Privacy(nopeek=NoPeek(10.0))) < correlation(None) - 0.04


def test_sglr_with_fixed_batches_and_averages_is_accounted():
    found = run(SGLR(phi=0.5), privacy=FIXED)
    alone = run(SGLR(phi=0.0), privacy=FIXED)
    assert found.metrics[-1]["epsilon_model"] > alone.metrics[-1]["epsilon_model"]
    assert found.metrics[-1]["epsilon_devices"] is None  # averaged cut gradients reach them without noise


class Twice(Replicated):
    """Borrows the edge's learner for each device, so that two would draw the same noise."""

    private = True

    def open(self, device, weight):
        learner = self.bench.borrow()
        learner.begin(self.back, self.bench.learning_rate)
        super().open(device, weight)


def test_learners_that_would_draw_the_same_noise_are_refused():
    class Mine(SplitFedV1):
        def trainer(self, round):
            return Spec(Twice)

    with pytest.raises(RunError, match="the edge's one private learner, and it is lent already"):
        run(Mine(), rounds=1, privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)), allowed=["tests"])
