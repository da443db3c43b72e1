"""Split learning by local losses: devices wait for nothing."""

import pytest
import torch
from fsl.strategies import DecoupledSL, SplitFedV1
from safetensors.torch import load_file
from torch import nn

import fsl
from fsl.data import digits
from fsl.errors import ConfigError, RunError
from fsl.importing.spec import Spec
from fsl.models import LeNet
from fsl.settings.optimizer_settings import Optimizer
from fsl.trainers import Decoupled
from tests.helpers.runs import KEPT, KillAfter, KilledError, assert_same_bits
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

OPTIONS = {"cut": "pool", "batch_size": 8}


def run(strategy, model=None, **options):
    options = OPTIONS | {"devices": 2, "rounds": 1} | options
    return fsl.simulate(model or small_model(), small_task(), strategy=strategy, **options)


def test_nothing_comes_down_and_everything_is_trained(tmp_path):
    start = small_model().state_dict()
    (row,) = (trained := run(DecoupledSL(), out=tmp_path / "run")).metrics
    assert row["down_bytes"] == 0
    assert row["up_bytes"] > 0
    assert all(not torch.equal(start[name], value) for name, value in trained.model.state_dict().items())
    assert set(load_file(tmp_path / "run" / "model.safetensors")) == set(start)
    assert set(load_file(tmp_path / "run" / "head.safetensors")) == {"2.weight", "2.bias"}


def test_the_front_is_trained_by_the_heads_loss_alone():
    """One device, plain PyTorch: front and head on their own loss, the back on what the front gave before its step."""
    from fsl import seeds

    model, task = small_model(), small_task()
    trained = run(DecoupledSL(), devices=1, optimizer=Optimizer("torch.optim.SGD", lr=0.1), rounds=1)
    modules = list(model.children())
    front, back = nn.Sequential(*modules[:2]), nn.Sequential(*modules[2:])
    smashed = front(task.train.inputs[:2])
    torch.manual_seed(seeds.derive(0, "init", segment="head"))
    head = DecoupledSL().head(smashed, model(task.train.inputs[:2]))
    device = torch.optim.SGD([*front.parameters(), *head.parameters()], lr=0.1)
    edge = torch.optim.SGD(back.parameters(), lr=0.1)
    draw = seeds.torch_generator(0, "batches", device=0, round=1)
    for rows in torch.randperm(len(task.train), generator=draw).split(8):
        inputs, targets = task.train.inputs[rows], task.train.targets[rows]
        smashed = front(inputs)
        nn.functional.cross_entropy(head(smashed), targets).backward()
        device.step()
        nn.functional.cross_entropy(back(smashed.detach().clone()), targets).backward()
        edge.step()
        device.zero_grad()
        edge.zero_grad()
    expected = {**front[0].state_dict(prefix="conv."), **back[1].state_dict(prefix="conv2.")}
    for name, value in expected.items():
        assert torch.equal(trained.model.state_dict()[name], value), name


@pytest.mark.parametrize(("options", "layers"), [({}, 3), ({"hidden": 16}, 5), ({"pool": 2}, 3)])
def test_the_head_fits_smashed_data_and_outputs(options, layers):
    head = DecoupledSL(**options).head(torch.zeros(2, 8, 10, 10), torch.zeros(2, 7))
    assert head(torch.zeros(5, 8, 10, 10)).shape == (5, 7)
    assert len(head) == layers
    assert DecoupledSL(**options).head(torch.zeros(2, 12), torch.zeros(2, 7))(torch.zeros(5, 12)).shape == (5, 7)


def test_a_head_for_other_outputs_must_be_ones_own():
    with pytest.raises(ConfigError, match=r"outputs are of shape \(2, 4, 8, 8\)"):
        DecoupledSL().head(torch.zeros(2, 8, 4, 4), torch.zeros(2, 4, 8, 8))


class PrivateFronts(DecoupledSL):
    """Each device keeps front and head; what the cloud sends is noted."""

    fronts = "private"

    def configure_train(self, server_round, arrays, config, grid):
        self._sent = getattr(self, "_sent", [])
        for message in super().configure_train(server_round, arrays, config, grid):
            self._sent.append({key.partition(".")[0] for key in message.content.array_records["arrays"]})
            yield message


@pytest.mark.slow
def test_private_fronts_and_heads_stay_on_their_devices(tmp_path):
    strategy = PrivateFronts()
    options = {"model": small_model("batch"), "rounds": 3, "optimizer": KEPT}
    whole = run(strategy, out=tmp_path / "whole", **options)
    assert strategy._sent == [{"front", "back", "head"}, {"back"}, {"back"}]
    with pytest.raises(KilledError):
        run(PrivateFronts(), out=tmp_path / "killed", observers=[KillAfter(1)], **options)
    resumed = run(PrivateFronts(), out=tmp_path / "killed", resume=True, **options)
    for device in range(2):
        assert_same_bits(whole.front(device), resumed.front(device))
    assert whole.metrics[-1]["accuracy"] == resumed.metrics[-1]["accuracy"]


@pytest.mark.parametrize(("option", "message"), [({"pool": 0}, "pool=0"), ({"hidden": -1}, "hidden=-1")])
def test_a_wrong_option_is_one_clear_line(option, message):
    with pytest.raises(ConfigError, match=message):
        DecoupledSL(**option)


class Unanswered(SplitFedV1):
    """Devices that wait, and an edge that never answers."""

    def trainer(self, round):
        return Spec(self.path(Decoupled))


def test_a_device_that_waits_in_vain_says_so():
    with pytest.raises(RunError, match="waits for the cut gradient of step 0, which its edge trainer never gave"):
        run(Unanswered())


class Sides(nn.Module):
    """A front of two inputs, or of one that has them side by side; the mask goes over the cut where it is asked for."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.norm = nn.Linear(4, 8), nn.Linear(4, 8), nn.Dropout(0.3)

    def forward(self, left, right):
        return self.norm(torch.relu(self.left(left) + self.right(right)))


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.front, self.back = Sides(), nn.Linear(8, 3)

    def forward(self, left, right):
        return self.back(self.front(left, right))


class SideBySide(Several):
    def forward(self, both):
        return self.back(self.front(both[:, :4], both[:, 4:]))


class Masked(Several):
    def forward(self, left, mask):
        return self.back(self.front(left, left) * mask)


@pytest.mark.parametrize("wired", [False, True], ids=["simulated", "wired"])
def test_a_model_of_several_inputs_trains_as_one_of_a_single_input_does(wired, tmp_path):
    both = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    labels = both[:, :3].argmax(1)
    several = ({"left": both[:, :4].contiguous(), "right": both[:, 4:].contiguous()}, labels)
    options = {"strategy": DecoupledSL(), "cut": "front", "devices": 2, "rounds": 2, "batch_size": 8, "progress": False}
    alone = fsl.simulate(SideBySide(), (both, labels), test_data=(both, labels), **options)
    backend = {"backend": Wired(folder=tmp_path, edges=1)} if wired else {}
    found = fsl.simulate(Several(), several, test_data=several, **options, **backend)
    for segment in alone.states:
        assert_same_bits(alone.states[segment], found.states[segment])
    for one, other in zip(alone.metrics, found.metrics, strict=True):
        assert (one["train_loss"], one["loss"]) == (other["train_loss"], other["loss"])
        assert wired or one["sim_seconds"] == other["sim_seconds"]


def test_a_head_that_would_see_one_of_several_tensors_is_refused():
    inputs = torch.randn(20, 4)
    data = ({"left": inputs, "mask": torch.ones(20, 8)}, inputs[:, :3].argmax(1))
    message = (
        "cut='front': what crosses there is a .*, and the head by which devices of DecoupledSL train learns from one"
    )
    with pytest.raises(ConfigError, match=message):
        fsl.simulate(Masked(), data, strategy=DecoupledSL(), cut="front", devices=2, progress=False)


@pytest.mark.shows
def test_it_learns_digits():
    data = digits()
    torch.manual_seed(0)
    optimizer = Optimizer(lr=0.05, options={"momentum": 0.9})
    trained = fsl.simulate(
        LeNet((1, 8, 8), 10), data, strategy=DecoupledSL(), rounds=20, batch_size=16, optimizer=optimizer
    )
    assert trained.metrics[-1]["accuracy"] > 0.9
