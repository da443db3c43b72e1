"""The edge: its sessions, its trainers, and what follows a device that moves."""

import copy

import pytest
import torch

from fsl.codecs import Identity
from fsl.errors import ConfigError, StepError, WireError
from fsl.importing.import_paths import ALLOWED, locate, locate_allowed
from fsl.importing.spec import Spec
from fsl.messages.steps import UploadPacket
from fsl.objective import CrossEntropy, LossFunction, as_objective
from fsl.round.edge_server import EdgeServer
from fsl.segments.optimizer import OptimizerRecipe, dump_optimizer, load_optimizer
from fsl.split.cutting import split
from fsl.trainers import Replicated, Sequential
from tests.helpers.edges import edge_with, packet
from tests.helpers.small import small_model


def gradients(replies):
    return {reply.device: reply.gradient.arrays[0][1] for reply in replies}


def test_a_cut_gradient_is_that_of_the_devices_own_mean_loss():
    edge = edge_with(Replicated(), recipe=OptimizerRecipe(Spec("torch.optim.SGD"), ALLOWED))
    edge.open(3, 6.0)
    upload = packet(3, 0)
    back = split(small_model("batch", 0.0), "pool")["back"].train()
    smashed = upload.smashed.arrays[0][1].clone().requires_grad_()
    torch.nn.functional.cross_entropy(back(smashed.clone()), upload.targets).backward()
    edge.trainer.bench.back.module.conv2[3].p = 0.0
    (reply,) = edge.step([upload])
    assert torch.equal(gradients([reply])[3], smashed.grad)


def test_replicas_do_not_see_each_other():
    alone = edge_with(Replicated())
    alone.open(1, 6.0)
    expected = [gradients(alone.step([packet(1, step)]))[1] for step in range(3)]
    shared = edge_with(Replicated())
    for device in (0, 1):
        shared.open(device, 6.0)
    for step in range(3):
        both = gradients(shared.step([packet(0, step), packet(1, step)]))
        assert torch.equal(both[1], expected[step])


def test_sequential_trains_one_back_for_all():
    edge = edge_with(Sequential(order="fixed"))
    for device in (0, 1):
        edge.open(device, 6.0)
    first = gradients(edge.step([packet(0, 0)]))
    second = gradients(edge.step([packet(1, 0)]))
    alone = edge_with(Sequential(order="fixed"))
    alone.open(1, 6.0)
    assert not torch.equal(gradients(alone.step([packet(1, 0)]))[1], second[1])
    assert first.keys() == {0}
    for device in (0, 1):
        edge.close(device)
    assert edge.result().weight == 12  # the rows that it was trained on


def test_sequential_draws_its_order_anew_each_step_and_round():
    def orders(trainer, round):
        edge = edge_with(trainer, round)
        return [[r.device for r in _answers(edge, step)] for step in range(4)]

    def _answers(edge, step):
        if step == 0:
            for device in range(5):
                edge.open(device, 6.0)
        return edge.step([packet(device, step) for device in range(5)])

    one, again, other = (orders(Sequential(), round) for round in (1, 1, 2))
    assert one == again != other
    assert len({tuple(order) for order in one}) > 1
    arranged = [tuple(edge_with(Sequential(order="round"), round).trainer.arrange(range(6))) for round in (1, 2, 3)]
    assert len(set(arranged)) > 1
    assert edge_with(Sequential(order="fixed")).trainer.arrange([2, 1]) == [2, 1]


def test_an_unknown_order_is_refused():
    with pytest.raises(ConfigError, match="order='random' is not an order of uploads; allowed: step, round, fixed"):
        Sequential(order="random")


@pytest.mark.parametrize("move_at", [1, 2, 3])
def test_a_device_that_moves_trains_as_if_it_had_stayed(move_at):
    stayed, source, destination = (edge_with(Replicated()) for _ in range(3))
    for edge in (stayed, source):
        edge.open(2, 6.0)
    current = source
    for step in range(4):
        if step == move_at:
            snapshot = source.snapshot(2)
            source.step([packet(2, step)])  # the source going on must not touch what was handed over
            destination.adopt(snapshot)
            current = destination
        expected = gradients(stayed.step([packet(2, step)]))[2]
        assert torch.equal(gradients(current.step([packet(2, step)]))[2], expected)
    one, other = stayed.close(2), destination.close(2)
    assert (one.up_bytes, one.down_bytes, one.loss_sum()) == (other.up_bytes, other.down_bytes, other.loss_sum())
    for dtype, flat in stayed.result().mean().flats.items():
        assert torch.equal(flat, destination.result().mean().flats[dtype])


def test_a_device_that_trains_in_turn_cannot_be_handed_over():
    edge = edge_with(Sequential("round"))
    edge.open(0, 6.0)
    with pytest.raises(ConfigError, match="Sequential cannot hand over a device"):
        edge.snapshot(0)


def test_an_edge_refuses_steps_out_of_order_and_strangers():
    edge = edge_with(Replicated())
    edge.open(0, 6.0)
    with pytest.raises(WireError, match="got step 1 of device 0; it expects step 0"):
        edge.step([packet(0, 1)])
    with pytest.raises(WireError, match="device 9; it expects no such device"):
        edge.step([packet(9, 0)])


def test_a_failing_step_names_its_device():
    edge = edge_with(Replicated())
    edge.open(4, 6.0)
    bad = packet(4, 0)
    wrong = UploadPacket(device=4, step=0, smashed=bad.smashed, targets=bad.targets + 100)
    with pytest.raises(StepError) as caught:
        edge.step([wrong])
    assert (caught.value.device, caught.value.step) == (4, 0)


def test_an_optimizers_state_is_kept_and_put_back():
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
    twins = copy.deepcopy(parameters)
    for kind, options in ((torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {})):
        one, other = kind(parameters, lr=0.1, **options), kind(twins, lr=0.1, **options)
        for _ in range(3):
            for mine, theirs in zip(parameters, twins):
                mine.grad, theirs.grad = mine.detach().clone(), theirs.detach().clone()
            one.step()
            other.step()
            fresh = kind(twins, lr=0.1, **options)
            load_optimizer(fresh, dump_optimizer(other))
            other = fresh
        assert all(torch.equal(a, b) for a, b in zip(parameters, twins))


def test_a_kept_state_shares_no_memory():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    kept = dump_optimizer(optimizer)
    before = kept["0.momentum_buffer"].clone()
    optimizer.step()
    assert torch.equal(kept["0.momentum_buffer"], before)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "torch.optim.optimizer.Any", "fsl.seeds.derive"])
def test_a_message_cannot_name_what_is_not_an_allowed_class(path):
    with pytest.raises(WireError):
        locate_allowed(path)


def test_what_cannot_be_imported_is_named():
    with pytest.raises(ConfigError, match=r"there is no 'fsl.nothing' to import"):
        locate("fsl.nothing")


def test_an_optimizer_with_unknown_options_lists_its_own():
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'speed'.*its options are: lr, momentum"):
        OptimizerRecipe(Spec("torch.optim.SGD", {"speed": 3}), ALLOWED).build([torch.nn.Parameter(torch.ones(1))])


def test_any_loss_function_is_an_objective():
    objective = as_objective(torch.nn.MSELoss())
    assert objective.loss(torch.zeros(2), torch.ones(2)) == 1
    assert objective.correct(torch.zeros(2), torch.ones(2)) is None
    assert isinstance(as_objective(lambda outputs, targets: (outputs - targets).abs().mean()), LossFunction)
    assert isinstance(as_objective(None), CrossEntropy)


def test_a_trainer_may_call_its_counts_by_the_hooks_former_name():
    class Former(Replicated):
        def figures(self):
            return {"mine": 1}

    assert EdgeServer(0, Former(), Identity, Identity).counts() == {"mine": 1}
    assert EdgeServer(0, Replicated(), Identity, Identity).counts() == {}
