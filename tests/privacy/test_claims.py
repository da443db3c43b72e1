"""What the ledger claims, and attacks on it: the epsilon that an attack shows lies below, or nothing is claimed."""

import math
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ArrayRecord
from fsl.strategies import PSL, SGLR, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from torch import nn

import fsl
from fsl import seeds
from fsl.codecs import Identity
from fsl.data import TaskData, TensorExamples
from fsl.deployment.node.networked_node import NetworkedNode
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import Limit
from fsl.errors import CheckpointError, CodeError, ConfigError, DataError, HijackedError, RunError, WireError
from fsl.importing.spec import Spec
from fsl.messages.round_plan import EvaluatePlan
from fsl.mobility import BackAndForth
from fsl.privacy import DPSGD, ClientLevel, CutNoise, Privacy, RandomizedLabels
from fsl.privacy.audit import distinguished
from fsl.privacy.claims import ADVERSARIES, ReleaseCounts, Setting, claim
from fsl.privacy.epsilon import Gaussian, accountant_used, combined, epsilon
from fsl.privacy.ledger import Ledger
from fsl.privacy.reasons import failure_reason
from fsl.privacy.settings import Detector
from fsl.privacy.trainer_accounts import fronts_moved
from fsl.round.edge_server import EdgeServer
from fsl.round.front_device import Device
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Pooled, Replicated
from tests.helpers.runs import run
from tests.helpers.small import small_model

pytestmark = pytest.mark.slow

DELTA = 1e-5
LOCAL = {"cut": CutNoise(4.0), "labels": RandomizedLabels(1.5)}
FIXED = {"sampling": "shuffle"}


def cost(*gaussians):
    return epsilon(tuple(Gaussian(*one) for one in gaussians), DELTA, "rdp")


def claims(privacy, *, fronts="averaged", edge=True, spread=1, fixed=(), fitted=""):
    setting = Setting(privacy, fronts, edge, 16, 2, spread, fixed=fixed, fitted=fitted)
    return {name: claim(name, setting, ReleaseCounts(160, rounds=5, steps=100, passes=10)) for name in ADVERSARIES}


# Attacks. Each device of one run is a trial of its own: nothing of another reaches it within its first round.

TRIALS = 120


def line(front=0.0, back=5.0):
    """One weight before the cut, two behind it."""
    model = nn.Sequential()
    model.add_module("front", nn.Linear(1, 1, bias=False))
    model.add_module("back", nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        model.front.weight.fill_(front)
        model.back.weight.copy_(torch.tensor([[back], [-back]]))
    return model


def trials(inputs, targets, strategy, privacy, *, rates, model=None, epochs=2, devices=TRIALS, others=0, **options):
    """One run of so many devices: those with an even id hold `inputs[0]`, the rest `inputs[1]`; the last `others` 0."""

    class Rated(strategy):
        def learning_rates(self, round):
            return rates

    rows = len(targets)
    data = torch.cat([inputs[device % 2 if device < devices - others else 0] for device in range(devices)])
    task = TaskData("trials", TensorExamples(data, targets.repeat(devices)), None, 2)
    held = [list(range(device * rows, (device + 1) * rows)) for device in range(devices)]
    return fsl.simulate(
        model or line(),
        task,
        strategy=Rated(**options.pop("arguments", {})),
        cut="front",
        devices=devices,
        rounds=1,
        local_epochs=epochs,
        batch_size=rows,
        partition=held,
        privacy=privacy,
        optimizer=Optimizer("torch.optim.SGD", lr=0.1),
        allowed=("tests",),
        **options,
    )


def told(found, adversary):
    return found.metrics[-1][f"epsilon_{adversary}"]


def shown(scores):
    return distinguished(scores[::2], scores[1::2], DELTA)


ROWS, CUT, LABELS = 1600, CutNoise(20.0, clip=1e-6), RandomizedLabels(0.05, correct=False)
OWN_ROWS = cost((CUT.noise_multiplier / 2, 1.0, 2)) + LABELS.epsilon  # all that was counted against the edge


def seen_in_other_rows(monkeypatch, dp_sgd, model=None):
    """The run, and per device what the edge makes of all rows but the one in question, in the second pass.

    The sample in question is row 0. The edge knows the run's seed, and so which row it is, and the label it was told.
    """
    scores = {}
    receive = EdgeServer.receive

    def look(edge, packet):
        upload = receive(edge, packet)
        draw = seeds.torch_generator(0, "batches", device=packet.device, round=1, step=packet.step)
        others = torch.randperm(ROWS, generator=draw) != 0
        if packet.step == 0:
            label = int(packet.targets[~others])
            scores[packet.device] = -1.0 if label else 1.0
        else:
            scores[packet.device] *= float(upload.smashed[others].mean())
        return upload

    monkeypatch.setattr(EdgeServer, "receive", look)
    inputs = torch.full((2, ROWS, 1), 1e-3)
    inputs[0, 0], inputs[1, 0] = 1e3, -1e3
    rates = {"front": float(ROWS), "back": 0.0}
    privacy = Privacy(dp_sgd=dp_sgd, cut=CUT, labels=LABELS)
    found = trials(inputs, torch.arange(ROWS) % 2, SplitFedV3, privacy, rates=rates, model=model)
    return found, [scores[device] for device in range(TRIALS)]


def test_later_rows_of_others_tell_the_edge_what_a_bare_front_learnt(monkeypatch):
    found, scores = seen_in_other_rows(monkeypatch, None)
    assert shown(scores) > 2 * OWN_ROWS
    assert told(found, "edge") is None
    assert told(found, "cloud_edge") is None


def test_later_rows_of_others_are_counted_where_the_front_learns_privately(monkeypatch):
    found, scores = seen_in_other_rows(monkeypatch, DPSGD(noise_multiplier=0.7, front_share=1.0, **FIXED))
    assert told(found, "edge") == pytest.approx(cost((10.0, 1.0, 2), (0.35, 1.0, 2)) + 0.05)
    assert OWN_ROWS < shown(scores) < told(found, "edge")


def test_a_frozen_front_leaves_own_rows_alone(monkeypatch):
    model = line(front=1.0)
    model.front.requires_grad_(False)
    found, scores = seen_in_other_rows(monkeypatch, None, model)
    assert told(found, "edge") == told(found, "model") == pytest.approx(OWN_ROWS)
    assert shown(scores) < OWN_ROWS


def seen_in_backs(monkeypatch, dp_sgd, **options):
    """The run, and per device how far its back has moved: every row's gradient shows what the front has learnt."""
    scores = {}
    close = Replicated.close

    def look(trainer, device):
        moved = trainer.bench.back.layout.unpack(trainer._replicas[device].learner.state())["back.weight"]
        scores[device] = -float(moved[0] - moved[1])
        close(trainer, device)

    monkeypatch.setattr(Replicated, "close", look)
    rows = 200
    inputs = torch.full((2, rows, 1), 1e-5)
    inputs[0, 0], inputs[1, 0] = -1e3, 1e3
    rates = {"front": rows * 1e6, "back": 0.01}
    targets = torch.ones(rows, dtype=torch.int64)
    found = trials(inputs, targets, SplitFedV3, Privacy(dp_sgd=dp_sgd), rates=rates, **options)
    return found, [scores[device] for device in range(TRIALS)]


BACK_ALONE = cost((0.7 / 0.001**0.5, 1.0, 2))


def test_backs_tell_what_a_bare_private_front_learnt(monkeypatch):
    dp_sgd = DPSGD(noise_multiplier=22.0, front_share=0.0, **FIXED)
    found, scores = seen_in_backs(monkeypatch, dp_sgd)
    assert shown(scores) > 2 * BACK_ALONE
    assert told(found, "model") is told(found, "devices") is told(found, "cloud") is None


def test_a_private_front_counts_though_it_is_never_sent(monkeypatch):
    found, scores = seen_in_backs(monkeypatch, DPSGD(noise_multiplier=0.7, front_share=0.999, **FIXED))
    for adversary in ("model", "devices", "cloud"):
        assert told(found, adversary) == pytest.approx(cost((0.7, 1.0, 2)))
    assert BACK_ALONE < shown(scores) < told(found, "model")


def test_averaged_cut_gradients_reach_other_devices_bare(monkeypatch):
    edges, heard, backward = 100, {}, Device.backward

    def listen(device, reply):
        if device.device >= edges and reply.step == 0:
            heard[device.device - edges] = float(Identity().decode(reply.gradient).sum())
        backward(device, reply)

    monkeypatch.setattr(Device, "backward", listen)
    # At each edge two devices: the one with the sample in question, and one that listens.
    inputs = torch.ones(2, 2, 1)
    inputs[1, 0] = -1.0
    found = trials(
        inputs,
        torch.tensor([1, 0]),
        SGLR,
        Privacy(dp_sgd=DPSGD(noise_multiplier=1000.0, **FIXED)),
        rates={"front": 0.1, "back": 0.1},
        model=line(front=0.1),
        epochs=1,
        devices=2 * edges,
        others=edges,
        edges=edges,
        arguments={"phi": 1.0, "alpha": 0.0},
    )
    scores = [heard[edge] for edge in range(edges)]
    assert shown(scores) > 2 * told(found, "cloud") > 0
    assert told(found, "devices") is None


# Who learns what, without an attack.

BARE = "the front learns from samples as they are"


@pytest.mark.parametrize("fronts", ["averaged", "private", "relayed"])
def test_a_front_counts_whatever_becomes_of_it(fronts):
    dp_sgd = DPSGD(noise_multiplier=1.0, front_share=0.3)
    found = claims(Privacy(dp_sgd=dp_sgd), fronts=fronts)
    for adversary in ("model", "devices", "cloud"):
        assert found[adversary].epsilon == pytest.approx(cost((1.0, 0.1, 100)))


def test_against_the_edge_own_rows_labels_and_the_front_compose():
    dp_sgd = DPSGD(noise_multiplier=2.0, front_share=0.25)
    found = claims(Privacy(dp_sgd=dp_sgd, **LOCAL))
    front = dp_sgd.multiplier("front")
    assert front == 4.0
    whole = cost((2.0, 1.0, 100), (front / 2, 1.0, 100)) + 1.5
    assert found["edge"].epsilon == found["cloud+edge"].epsilon == pytest.approx(whole)
    assert "replaced" in found["edge"].neighbours


def test_the_noise_of_a_back_counts_nothing_against_the_edge():
    found = [claims(Privacy(dp_sgd=DPSGD(noise_multiplier=s, front_share=1.0), **LOCAL)) for s in (2.0, 2.0)]
    mixed = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=2.0 * 0.5**0.5, front_share=0.5), **LOCAL))
    assert mixed["edge"].epsilon == pytest.approx(found[0]["edge"].epsilon)


def test_a_back_that_saw_only_noised_rows_is_as_private_as_they_and_the_front_are():
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=2.0, front_share=1.0), **LOCAL))
    assert found["model"].epsilon == found["edge"].epsilon
    assert found["edge"].epsilon == pytest.approx(cost((2.0, 1.0, 100), (1.0, 1.0, 100)) + 1.5)


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        (Privacy(**LOCAL), BARE),
        (Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, front_share=0.0), **LOCAL), BARE),
        (Privacy(client=ClientLevel(1.0), **LOCAL), BARE),
        (Privacy(dp_sgd=DPSGD(noise_multiplier=1.0), cut=CutNoise(1.0)), "labels reach the edge"),
        (Privacy(dp_sgd=DPSGD(noise_multiplier=1.0), labels=RandomizedLabels(1.0)), "smashed data reach the edge"),
        (Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clipping="joint"), **LOCAL), "norms of samples' gradients"),
    ],
    ids=["local alone", "bare front", "client", "no labels", "no cut", "joint"],
)
def test_against_the_edge_nothing_is_claimed_where_something_is_bare(privacy, said):
    found = claims(privacy)
    for adversary in ("edge", "cloud+edge"):
        assert found[adversary].epsilon is None
        assert said in found[adversary].unbounded


def test_a_frozen_front_that_may_know_the_data_is_not_trusted():
    found = claims(Privacy(**LOCAL), fixed=("front",), fitted="init_from=a.safetensors may have been trained on them")
    assert "init_from=a.safetensors may have been trained on them" in found["edge"].unbounded
    assert "privacy.public_front=true" in found["edge"].unbounded
    assert claims(Privacy(**LOCAL), fixed=("front",))["edge"].epsilon == cost((2.0, 1.0, 10)) + 1.5


def test_a_frozen_front_needs_no_noise_of_its_own():
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, front_share=0.0)), fixed=("front",))
    assert found["model"].epsilon == cost((1.0, 0.1, 100))


def test_averaged_gradients_of_noised_rows_are_as_private_as_the_rows():
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=4.0, **FIXED), **LOCAL)
    found = claims(privacy, spread=9)
    own = 4.0 * 2**0.5
    assert found["devices"].epsilon == found["edge"].epsilon
    assert found["edge"].epsilon == pytest.approx(cost((2.0, 1.0, 10), (own / 2, 1.0, 10)) + 1.5)
    assert found["cloud"].epsilon == pytest.approx(cost((combined([own / 6, own / 2]), 1.0, 10)))
    bare = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=4.0, **FIXED)), spread=9)
    assert "averaged cut gradients" in bare["devices"].unbounded


@pytest.mark.parametrize("adversary", ["model", "devices", "cloud"])
def test_a_detector_tells_by_stopping(adversary):
    dp_sgd, detector = DPSGD(noise_multiplier=1.0), Detector()
    assert "stops" in claims(Privacy(dp_sgd=dp_sgd, detector=detector))[adversary].unbounded
    noised = claims(Privacy(dp_sgd=dp_sgd, detector=detector, **LOCAL))
    assert noised[adversary].epsilon == noised["edge"].epsilon is not None


def test_losses_of_noised_rows_are_as_private_as_the_rows():
    found = claims(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0), losses=True, **LOCAL))
    assert found["cloud"].epsilon == found["edge"].epsilon is not None


# In a run.


@pytest.mark.parametrize("strategy", [PSL, SplitFedV3, SplitFedV1, SplitFedV2, VanillaSL])
def test_every_strategy_is_charged_for_front_and_back(strategy):
    found = run(strategy(), rounds=1, batch_size=8, privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)))
    assert told(found, "model") == pytest.approx(cost((1.0, 8 / 32, 4)))


def test_a_front_is_frozen_only_where_nothing_of_it_trains(tmp_path):
    model = small_model()
    for parameter in list(model.parameters())[:-1]:
        parameter.requires_grad_(False)
    privacy = Privacy(cut=CutNoise(20.0), labels=RandomizedLabels(0.5))
    found = run(SplitFedV1(), model, rounds=1, privacy=privacy, out=tmp_path / "one")
    assert told(found, "edge") == pytest.approx(cost((10.0, 1.0, 1)) + 0.5)
    start = tmp_path / "one/model.safetensors"
    again = run(SplitFedV1(), model, rounds=1, privacy=privacy, init_from=start)
    assert told(again, "edge") is None
    public = Privacy(cut=CutNoise(20.0), labels=RandomizedLabels(0.5), public_front=True)
    declared = run(SplitFedV1(), model, rounds=1, privacy=public, init_from=start)
    assert told(declared, "edge") == told(found, "edge")
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(True)
    assert told(run(SplitFedV1(), model, rounds=1, privacy=privacy), "edge") is None


class Changing(PSL):
    """Its trainer of a later round is another one."""

    def __init__(self, later):
        super().__init__()
        self._later = later

    def trainer(self, round):
        return super().trainer(round) if round < 3 else Spec(self.path(Pooled), self._later)


@pytest.mark.parametrize("strategy", [SGLR(phi=0.5, alpha=0.0, phase=[0.5, 1.0]), Changing({"phi": 0.5})])
def test_every_rounds_trainer_is_looked_at(strategy):
    with pytest.raises(ConfigError, match="a Poisson draw shifts the rows"):
        run(strategy, rounds=4, batch_size=8, privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)))


@pytest.mark.parametrize(
    "strategy",
    [SGLR(phi=1.0, alpha=0.0, phase=[0.5, 1.0]), Changing({"phi": 1.0}), Changing({"phi": 0.1, "subset": "all"})],
)
def test_the_widest_spread_of_all_rounds_counts(strategy):
    found = run(strategy, rounds=4, privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=4.0, **FIXED)))
    own = 4.0 * 2**0.5
    assert told(found, "cloud") == pytest.approx(cost((combined([own / (2 * 3**0.5), own / 2]), 1.0, 4)))
    assert told(found, "devices") is None


def test_a_trainer_that_nobody_saw_ends_the_run():
    class Moody(PSL):
        def __init__(self):
            super().__init__()
            self._began = False

        def learning_rates(self, round):
            self._began = True
            return super().learning_rates(round)

        def trainer(self, round):
            return Spec(self.path(Pooled), {"phi": 1.0 if self._began else 0.0})

    with pytest.raises(RunError, match="said something else when the run's privacy was accounted for"):
        run(Moody(), rounds=2, batch_size=8, privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)))


def test_the_bytes_of_a_move_do_not_tell_a_poisson_draw():
    def moved(privacy):
        options = {"devices": 4, "edges": 3, "mobility": BackAndForth([0, 1]), "privacy": privacy, "batch_size": 8}
        found = run(SplitFedV1(), rounds=4, **options)
        return [row["migration_bytes"] for row in found.metrics]

    assert len(set(moved(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0))))) == 1


def test_a_node_does_not_score_its_own_test_rows_in_a_private_run():
    plan, arrays = EvaluatePlan(run="run", round=1, devices=(), probe=None), ArrayRecord()

    def node(**settings):
        made = NetworkedNode.__new__(NetworkedNode)
        made.settings, made._bare = NodeSettings(**settings), False
        workload = SimpleNamespace(partition=SimpleNamespace(devices=3))
        worker = SimpleNamespace(workload=workload)
        made.node = SimpleNamespace(evaluate=lambda plan, arrays: "scores", worker=worker)
        return made

    with pytest.raises(ConfigError, match="test rows are its own"):
        node(rows="all").evaluate(plan, arrays)
    assert node().evaluate(plan, arrays) == "scores"  # test rows that all nodes have
    bare = node(rows="all")
    bare._bare = True
    assert bare.evaluate(plan, arrays) == "scores"
    limited = node(rows="all", limit=Limit(1.0, "model"))
    limited._bare = True
    with pytest.raises(ConfigError, match="test rows are its own"):
        limited.evaluate(plan, arrays)


@pytest.mark.parametrize(
    ("error", "private", "kept"),
    [
        (IndexError("Target 7 is out of bounds"), True, False),
        (IndexError("Target 7 is out of bounds"), False, True),
        (DataError("data/7.png cannot be decoded"), True, False),
        (HijackedError("those of equal labels are 0.7 more alike"), True, False),
        (CodeError("Target 7"), True, False),
        (WireError("the edge said 7"), True, True),
    ],
)
def test_why_a_device_failed_quotes_no_data_of_a_private_run(error, private, kept):
    told = failure_reason(error, private)
    assert told.startswith(type(error).__name__)
    assert ("7" in told) is kept


# The ledger's file, and its sums.


def ledger(path, secure=True):
    return Ledger(Setting(Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)), "averaged", True, 16, 1, 1, secure), [160], path)


def test_a_ledger_that_is_gone_or_old_is_refused(tmp_path):
    path = tmp_path / "privacy.json"
    one = ledger(path)
    one.before([0])
    old = path.read_text()
    one.before([0])
    state = one.state()
    ledger(path).load_state(state)
    path.write_text(old)
    with pytest.raises(CheckpointError, match="fewer releases of device 0 than the checkpoint"):
        ledger(path).load_state(state)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"privacy\.json is missing"):
        ledger(path).load_state(state)
    ledger(path).load_state({})  # a run that begins
    seeded = ledger(path, secure=False)  # its rounds are repeated to the bit
    seeded.load_state(state)
    assert seeded.release_counts == one.release_counts


def test_the_ledger_says_what_it_leaves_out(tmp_path):
    said = " ".join(ledger(None).report()["assumes"])
    assert "trials of a search on the same data" in said
    assert "init_from" in said
    assert "normalised" in said


@pytest.mark.parametrize("noise", [0.05, 1e-3, 1e-200])
def test_an_epsilon_beyond_prv_is_that_of_rdp_and_says_so(noise):
    history = (Gaussian(noise, 1.0, 10),)
    assert accountant_used(history, DELTA, "prv") == "rdp"
    assert epsilon(history, DELTA, "prv") == epsilon(history, DELTA, "rdp") > 700
    setting = Setting(Privacy(dp_sgd=DPSGD(noise_multiplier=noise, **FIXED), accountant="prv"), "averaged", True, 16, 1)
    found = claim("model", setting, ReleaseCounts(160, passes=10))
    assert "the noise multiplier is 0" not in found.unbounded
    assert found.composition == "RDP accountant"


def test_a_long_prv_account_is_announced(caplog, monkeypatch):
    class Quick:
        def get_epsilon(self, delta):
            return 1.0

    monkeypatch.setattr("opacus.accountants.create_accountant", lambda mechanism: Quick())
    assert epsilon((Gaussian(77.0, 0.001, 20_500),), 1.1e-5, "prv") == 1.0
    assert "privacy.accountant=prv over more than 20000 releases" in caplog.text


def test_no_epsilon_is_below_nothing():
    assert epsilon((Gaussian(100.0, 0.1, 1),), 0.9, "rdp") == 0.0


class Reaching(Pooled):
    private = True
    reach: float = 1.5

    def spread(self, devices):
        return self.reach


def test_a_part_of_another_front_counts_as_a_whole_one():
    assert fronts_moved(Reaching(), 4) == 2


@pytest.mark.parametrize("reach", [math.nan, math.inf, 0.5, 0, "2", None, True])
def test_a_spread_that_is_no_number_of_fronts_is_refused(reach):
    kind = type("Wrong", (Reaching,), {"private": True, "reach": reach})
    with pytest.raises(ConfigError, match=r"Wrong.spread\(\) gave .*; give how many fronts, a number from 1"):
        fronts_moved(kind(), 4)
