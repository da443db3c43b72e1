"""`fsl.simulate` from Python: what users bring, what is written, what is refused."""

import json

import pytest
import torch
from fsl.strategies import FedAvg, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import fsl
from fsl.data import Augmentation, Dirichlet, Partition, Partitioner, Resample
from fsl.errors import CheckpointError, ConfigError, DataError
from fsl.segments.learning_rate import Schedule
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.runs import assert_same_bits, run, strategies
from tests.helpers.small import small_model, small_task

pytestmark = pytest.mark.slow


@strategies
def test_every_strategy_learns(strategy):
    result = run(
        strategy, rounds=12, devices=3, optimizer=Optimizer("torch.optim.SGD", lr=0.1, options={"momentum": 0.9})
    )
    assert result.metrics[-1]["accuracy"] > 0.8
    assert result.metrics[-1]["train_loss"] < result.metrics[0]["train_loss"]


def test_the_models_checkpoint_loads_without_fsl(tmp_path):
    result = run(SplitFedV1(), out=tmp_path / "run")
    plain = small_model()
    plain.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    assert_same_bits(plain.state_dict(), result.model.state_dict())


def test_private_fronts_and_the_back_are_written_with_the_unsplit_keys(tmp_path):
    run(SplitFedV3(), out=tmp_path / "run", devices=4, devices_per_round=2, rounds=2)
    back = load_file(tmp_path / "run" / "back.safetensors")
    fronts = sorted((tmp_path / "run" / "fronts").glob("*.safetensors"))
    assert 2 <= len(fronts) <= 4
    assert {*back, *load_file(fronts[0])} == small_model().state_dict().keys()
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_callers_model_is_not_changed():
    model = small_model("batch")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(SplitFedV1(), model)
    assert_same_bits(model.state_dict(), before)


def test_metrics_have_the_columns_of_the_design(tmp_path):
    run(SplitFedV1(), out=tmp_path / "run", rounds=2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    columns = "round train_loss loss accuracy devices examples up_bytes down_bytes model_bytes seconds sim_seconds"
    assert [row["round"] for row in rows] == [1, 2]
    assert all(set(columns.split()) <= row.keys() for row in rows)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["final"]["accuracy"] == rows[-1]["accuracy"]
    assert summary["seed"] == 0
    assert summary["versions"]["torch"] == torch.__version__


def test_a_run_counts_its_bytes():
    options = {"devices": 2, "rounds": 1, "batch_size": 48}
    plain, halved = run(SplitFedV1(), **options), run(SplitFedV1(), up="fsl.codecs.Float16", **options)
    values = 2 * 48 * 4 * 4 * 4  # two devices, one step of 48 rows, (4, 4, 4) smashed values a row
    assert plain.metrics[0]["up_bytes"] - halved.metrics[0]["up_bytes"] == pytest.approx(2 * values, abs=20)
    assert plain.metrics[0]["down_bytes"] == pytest.approx(4 * values, rel=0.02)
    assert plain.metrics[0]["model_bytes"] == 2 * 2 * 4 * (4 * 9 + 4)


@pytest.mark.parametrize("codec", ["Float16", "BFloat16", "Int8"])
def test_training_works_through_every_codec(codec):
    name = f"fsl.codecs.{codec}"
    result = run(
        SplitFedV1(),
        rounds=12,
        up=name,
        down=name,
        optimizer=Optimizer("torch.optim.SGD", lr=0.1, options={"momentum": 0.9}),
    )
    assert result.metrics[-1]["accuracy"] > 0.8


def test_weights_are_the_devices_shares_of_the_samples():
    partition = Dirichlet(alpha=0.3, min_samples=3)
    result = run(SplitFedV1(), partition=partition, devices=4, rounds=1)
    assert result.metrics[0]["examples"] == 96


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV2(), FedAvg(), VanillaSL()])
def test_a_last_batch_of_one_sample_is_skipped_under_batch_norm(strategy):
    task = small_task(samples=99)  # 33 a device: two batches of 16 and one sample
    result = fsl.simulate(small_model("batch"), task, strategy=strategy, cut="pool", devices=3, rounds=1, batch_size=16)
    assert (result.metrics[0]["skipped"], result.metrics[0]["examples"]) == (3, 96)
    result = fsl.simulate(small_model("none"), task, strategy=strategy, cut="pool", devices=3, rounds=1, batch_size=16)
    assert (result.metrics[0]["skipped"], result.metrics[0]["examples"]) == (0, 99)


def test_devices_with_fewer_samples_than_a_batch_train():
    result = run(SplitFedV2(), devices=24, batch_size=32, rounds=1)
    assert result.metrics[0]["examples"] == 96


def test_devices_may_have_different_numbers_of_batches():
    result = run(SplitFedV2(), partition=Dirichlet(alpha=0.3, min_samples=2), devices=4, batch_size=4, rounds=2)
    assert result.metrics[-1]["examples"] == 96


def test_a_partition_that_leaves_a_device_without_samples_is_refused():
    class Unfair(Partitioner):
        def divide(self, targets, devices, seed, groups=None):
            return Nothing(devices)

    class Nothing(Partition):
        def __init__(self, devices):
            self.devices = devices

        def indices(self, device):
            return torch.arange(0 if device == 2 else 8)

        def size(self, device):
            return len(self.indices(device))

    for strategy in (SplitFedV1(), FedAvg()):
        with pytest.raises(DataError, match="device 2 holds no samples"):
            run(strategy, partition=Unfair())


def test_private_fronts_without_an_accuracy_are_evaluated_by_loss():
    data = TensorDataset(torch.randn(32, 6), torch.randn(32, 2))
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    options = {"test_data": data, "strategy": SplitFedV3(), "cut": "0", "objective": nn.MSELoss(), "rounds": 1}
    row = fsl.simulate(model, data, devices=2, **options).metrics[0]
    assert row["accuracy"] is None
    assert row["loss"] > 0


def test_a_front_without_parameters_trains_the_back():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    result = fsl.simulate(model, small_task(), strategy=SplitFedV1(), cut="0", devices=2, rounds=10)
    assert result.metrics[-1]["accuracy"] > 0.8


def test_warm_start_takes_a_files_weights(tmp_path):
    start = small_model(seed=5)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    warm = run(SplitFedV1(), small_model(seed=9), init_from=tmp_path / "start.safetensors")
    assert_same_bits(warm.model.state_dict(), run(SplitFedV1(), start).model.state_dict())


def test_the_best_model_by_validation_is_kept(tmp_path):
    from fsl.data import hold_out

    task = hold_out(small_task(), 0.25, seed=0)
    result = fsl.simulate(
        small_model(), task, strategy=SplitFedV1(), cut="pool", devices=3, rounds=4, out=tmp_path / "run"
    )
    best = max(result.metrics, key=lambda row: (row["validation_accuracy"], -row["round"]))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["best_round"] == best["round"]
    assert load_file(tmp_path / "run" / "best.safetensors").keys() == small_model().state_dict().keys()


def test_a_users_dataset_loss_and_model_are_first_class():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 6, generator=generator)
    targets = inputs @ torch.randn(6, 2, generator=generator)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    result = fsl.simulate(
        model,
        TensorDataset(inputs[:100], targets[:100]),
        test_data=TensorDataset(inputs[100:], targets[100:]),
        strategy=SplitFedV1(),
        cut="1",
        objective=nn.MSELoss(),
        devices=4,
        rounds=25,
    )
    assert result.metrics[-1]["loss"] < 0.3 * result.metrics[0]["loss"]
    assert result.metrics[-1]["accuracy"] is None


def test_without_test_data_nothing_is_evaluated():
    task = small_task()
    pairs = TensorDataset(task.train.inputs, task.train.targets)
    for strategy in (SplitFedV1(), SplitFedV3()):
        result = fsl.simulate(small_model(), pairs, strategy=strategy, cut="pool", devices=2, rounds=1)
        assert result.metrics[0]["accuracy"] is None


class Noisy(Dataset):
    """A transform that draws anew at each access cannot be materialised."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((4,), float(index % 2)) + torch.randn(4), index % 2


def test_a_dataset_can_be_left_as_it_is():
    from fsl.data import from_dataset

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    def train(nodes):
        data = from_dataset(Noisy(), materialize=False)
        return fsl.simulate(model, data, strategy=SplitFedV1(), cut="0", rounds=2, devices=4, nodes=nodes)

    one, three = train(1), train(3)
    assert one.metrics[0]["examples"] == 40
    assert_same_bits(one.model.state_dict(), three.model.state_dict())  # its draws are the run's


def test_augmentation_is_drawn_from_the_seed():
    options = {"augmentation": Augmentation(crop=1, flip=True)}
    one, again, plain = run(SplitFedV1(), **options), run(SplitFedV1(), **options), run(SplitFedV1())
    assert_same_bits(one.model.state_dict(), again.model.state_dict())
    assert not torch.equal(one.states["front"]["conv.0.weight"], plain.states["front"]["conv.0.weight"])


def test_frozen_parameters_stay_as_they_are():
    model = small_model()
    for parameter in model.conv.parameters():
        parameter.requires_grad_(False)
    result = run(SplitFedV1(), model)
    assert torch.equal(result.states["front"]["conv.0.weight"], model.conv[0].weight)


def test_a_schedule_goes_by_round():
    schedule = Schedule(milestones=(0.5, 0.8), gamma=0.1)
    factors = [schedule.factor(round, 10) for round in range(1, 11)]
    assert factors == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)
    assert Schedule(cosine=True).factor(1, 10) == 1
    still = run(
        SplitFedV1(),
        rounds=4,
        optimizer=Optimizer("torch.optim.SGD", lr=0.1, schedule=Schedule(milestones=(0.5,), gamma=1e-30)),
    )
    losses = [row["loss"] for row in still.metrics]
    assert losses[1] == losses[2] == losses[3] != losses[0]


def test_many_devices_cost_only_those_that_train():
    result = run(SplitFedV3(), partition=Resample(8), devices=50_000, devices_per_round=3, evaluate_devices=4, rounds=2)
    assert [row["devices"] for row in result.metrics] == [3, 3]
    assert result.metrics[-1]["evaluated_devices"] == 4


def test_private_generations_do_not_pile_up(tmp_path):
    run(SplitFedV3(), out=tmp_path / "run", devices=2, rounds=5)
    kept = sorted(p.stem for p in (tmp_path / "run/checkpoint/devices/packs").iterdir())
    assert kept == ["4-0", "5-0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices=0: it must be at least 1"),
        ({"devices": 500}, "devices=500: there are only 96 training samples"),
        ({"devices_per_round": 4}, "devices_per_round=4: it must lie between 1 and devices=3"),
        ({"edges": 4}, "edges=4: there are only 3 devices"),
        ({"nodes": 0}, "nodes=0: it must be at least 1"),
        ({"batch_size": 1, "model": small_model("batch")}, "batch normalisation needs two rows"),
        ({"up": "os.system"}, "codec.up=os.system"),
        ({"up": "fsl.strategies.FedAvg"}, "is not a Codec"),
        ({"samples_per_device": 0}, "samples_per_device=0"),
        ({"cut": "nope"}, "cut='nope'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(SplitFedV1(), out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lr", "schedule"), [(-1.0, {}), (float("nan"), {}), (0.1, {"gamma": 0.0}), (0.1, {"milestones": (2,)})]
)
def test_a_learning_rate_that_cannot_be_is_refused(lr, schedule):
    with pytest.raises(ConfigError, match=r"optimizer\.(lr|gamma|milestones)"):
        Optimizer("torch.optim.SGD", lr=lr, schedule=Schedule(**schedule))


def test_a_second_run_into_a_folder_is_refused_and_nothing_is_lost(tmp_path):
    run(SplitFedV1(), out=tmp_path / "run", rounds=1)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="holds a run already; go on with it"):
        run(SplitFedV1(), out=tmp_path / "run", rounds=1)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "has seed=0, this one 1"),
        ({"batch_size": 8}, "has batch_size=16, this one 8"),
        ({"model": small_model("batch")}, r"has model\.modules="),
        ({"partition": Dirichlet(1.0)}, "has partition="),
    ],
)
def test_another_configuration_cannot_resume_a_run(options, message, tmp_path):
    run(SplitFedV1(), out=tmp_path / "run", rounds=2)
    with pytest.raises(CheckpointError, match=message):
        run(SplitFedV1(), out=tmp_path / "run", resume=True, **options)


@pytest.mark.parametrize("name", ["model.1.safetensors", "state.json"])
@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(p.read_bytes()[:50]), lambda p: p.unlink()], ids=["cut", "gone"]
)
def test_a_damaged_checkpoint_is_refused_in_one_line(name, damage, tmp_path):
    run(SplitFedV1(), out=tmp_path / "run", rounds=1)
    damage(tmp_path / "run" / "checkpoint" / name)
    with pytest.raises(CheckpointError) as caught:
        run(SplitFedV1(), out=tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", [SplitFedV1(), SplitFedV3()], ids=["averaged", "private"])
@pytest.mark.parametrize("name", ["model.2.safetensors", "state.json"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(name, strategy, tmp_path, caplog):
    whole = run(strategy, out=tmp_path / "whole", rounds=3)
    run(strategy, out=tmp_path / "run", rounds=2)
    path = tmp_path / "run" / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:50])
    found = run(strategy, out=tmp_path / "run", rounds=3, resume=True)
    assert "it goes on from the checkpoint of round 1" in caplog.text
    assert [row["round"] for row in found.metrics] == [1, 2, 3]
    assert_same_bits(found.states["back"], whole.states["back"])


def test_a_missing_private_front_is_named(tmp_path):
    run(SplitFedV3(), out=tmp_path / "run", rounds=2)
    (tmp_path / "run/checkpoint/devices/packs/2-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"device 0's front in .*/packs is missing, though round 2 wrote it"):
        run(SplitFedV3(), out=tmp_path / "run", rounds=2, resume=True)


def test_a_finished_run_can_be_extended(tmp_path):
    run(SplitFedV1(), out=tmp_path / "run", rounds=2)
    longer = run(SplitFedV1(), out=tmp_path / "run", rounds=4, resume=True)
    assert_same_bits(longer.model.state_dict(), run(SplitFedV1(), rounds=4).model.state_dict())


def test_a_schedule_over_all_rounds_cannot_be_extended(tmp_path):
    cosine = Optimizer("torch.optim.SGD", lr=0.1, schedule=Schedule(cosine=True))
    run(SplitFedV1(), out=tmp_path / "run", rounds=2, optimizer=cosine)
    with pytest.raises(CheckpointError, match="has rounds=2, this one 4"):
        run(SplitFedV1(), out=tmp_path / "run", rounds=4, optimizer=cosine, resume=True)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(tmp_path):
    whole = run(SplitFedV1(), out=tmp_path / "run", rounds=2)
    again = run(SplitFedV1(), out=tmp_path / "run", rounds=2, resume=True)
    assert_same_bits(whole.model.state_dict(), again.model.state_dict())
    assert len(again.metrics) == 2


def test_a_run_is_not_resumed_with_another_dropout(tmp_path):
    run(SplitFedV1(), small_model(dropout=0.1), out=tmp_path / "run", rounds=1)
    with pytest.raises(CheckpointError, match=r"model\.modules"):
        run(SplitFedV1(), small_model(dropout=0.5), out=tmp_path / "run", rounds=2, resume=True)


class Holds(nn.Module):
    """A traced model with tensors of its own, some of them held twice."""

    def __init__(self):
        super().__init__()
        self.f, self.g, self.inner = nn.Linear(4, 16), nn.Linear(16, 3), nn.Module()
        self.pos = nn.Parameter(torch.zeros(16))
        self.inner.shift = nn.Parameter(torch.zeros(16))
        self.more = nn.ParameterList([torch.zeros(16)])
        self.listed, self.fixed = [nn.Parameter(torch.eye(16))], (self.pos,)
        self.mix = self.listed[0]
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        h = self.f(x)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        h = F.linear(F.relu(h) + self.fixed[0] + self.inner.shift + self.more[0], self.listed[0])
        return F.linear(h - self.mean, self.g.weight, self.g.bias)


@pytest.mark.parametrize("strategy", [SplitFedV1, FedAvg])
def test_the_model_that_a_run_gives_is_the_trained_one(strategy):
    torch.manual_seed(0)
    inputs = torch.randn(48, 4)
    labels = inputs[:, :3].argmax(1)
    data = TensorDataset(inputs, labels)
    found = fsl.simulate(Holds(), data, test_data=data, strategy=strategy(), cut="f", devices=3, rounds=2)
    trained = {key: tensor for state in found.states.values() for key, tensor in state.items()}
    assert_same_bits(found.model.state_dict(), trained)
    assert found.model.listed[0] is found.model.mix
    assert found.model.fixed[0] is found.model.pos
    with torch.no_grad():
        loss = float(F.cross_entropy(found.model.eval()(inputs), labels))
    assert loss == pytest.approx(found.metrics[-1]["loss"], rel=1e-5)
