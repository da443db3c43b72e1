"""Simulated time and energy, against what one computes by hand."""

import copy

import pytest
import torch
from fsl.strategies import FedAvg, SplitFedV1, SplitFedV2, VanillaSL
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fsl
from fsl.costs import (
    DeviceLoad,
    DeviceProfile,
    LinkProfile,
    Mixed,
    SegmentCost,
    Serving,
    machines,
    price,
    round_cost,
    segment_costs,
    serving_of,
    stage_costs,
)
from fsl.data import Dirichlet, TensorExamples, digits
from fsl.errors import CheckpointError, ConfigError
from fsl.models import MLP, VGG5, LeNet, ResNet8
from fsl.objective import CrossEntropy
from fsl.segments.backward import send_back
from fsl.segments.calling import call
from fsl.segments.tensor_trees import gradient_of, received
from fsl.split.cutting import split
from fsl.trainers import Cyclic, Decoupled, Pooled, Replicated, Sequential
from fsl.trainers.back_steps import cut_leaf
from tests.helpers.places import ROOT
from tests.helpers.runs import assert_same_bits, run, strategies
from tests.helpers.small import small_model, small_task

# One byte takes a second over this link. A sample takes a slow device 2 s forward and 4 s backward, a fast one half of
# it, and the edge 3 s.
UNIT = LinkProfile("unit", 8e-6, 8e-6)
SLOW, FAST, EDGE = DeviceProfile("slow", 1.0), DeviceProfile("fast", 2.0), DeviceProfile("edge", 1.0)
FRONT, BACK = SegmentCost("front", "device", 2.0, 4.0), SegmentCost("back", "edge", 1.0, 2.0)


def load(device, steps=2, model_bytes=0, edge=0):
    return DeviceLoad(device, edge, steps, steps, up_bytes=steps, down_bytes=steps, model_bytes=model_bytes)


def cost(loads, serving, *, devices=(SLOW, FAST), link=UNIT, edge=EDGE, segments=(FRONT, BACK), start=0.0):
    by_id = dict(enumerate(devices))
    return round_cost(loads, serving, segments, by_id, dict.fromkeys(by_id, link), {0: edge, 1: edge}, start)


def ends(cost):
    return [device.seconds for device in cost.devices]


# Rounds, by hand.


def test_uploads_queue_at_the_edge_first_in_first_out():
    # The fast one's first upload is there at 2 and served to 5; the slow one's, there at 3, waits 2 s.
    assert ends(cost([load(0), load(1)], Serving("queue"))) == [24.0, 16.0]


def test_an_edge_with_two_slots_serves_two_at_once():
    assert ends(cost([load(0), load(1)], Serving("queue"), edge=DeviceProfile("wide", 1.0, slots=2))) == [22.0, 16.0]


def test_every_edge_has_a_queue_of_its_own():
    assert ends(cost([load(0), load(1, edge=1)], Serving("queue"))) == [22.0, 16.0]


def test_a_round_begins_with_the_model_and_ends_when_it_is_back():
    assert cost([load(0, model_bytes=4), load(1, model_bytes=4)], Serving("queue")).seconds == 28.0


def test_latency_counts_once_each_way():
    distant = LinkProfile("distant", 8e-6, 8e-6, latency_s=0.5)
    assert cost([load(0, model_bytes=4)], Serving("queue"), link=distant).seconds == 26.0 + 2 * (2 * 0.5) + 2 * 0.5


def test_in_lockstep_a_step_waits_for_the_slowest_and_replies_for_the_whole_step():
    assert ends(cost([load(0), load(1)], Serving("lockstep"))) == [28.0, 26.0]


def test_in_lockstep_a_device_without_further_batches_is_waited_for_no_more():
    assert ends(cost([load(0), load(1, steps=1)], Serving("lockstep"))) == [25.0, 12.0]


def test_a_window_of_uploads_is_answered_together():
    assert ends(cost([load(0), load(1)], Serving("lockstep", window=2))) == [28.0, 24.0]


def test_in_turn_one_device_trains_after_another():
    assert ends(cost([load(0), load(1)], Serving("turn"))) == [22.0, 38.0]
    averaged = [load(0, model_bytes=4), load(1, model_bytes=4)]
    assert ends(cost(averaged, Serving("turn"))) == [26.0, 42.0]  # both have fetched their front by 2
    assert ends(cost(averaged, Serving("turn", relayed=True))) == [26.0, 46.0]  # the second gets it at 26


def test_without_an_edge_devices_train_the_whole_model():
    assert ends(cost([load(0, model_bytes=4), load(1)], Serving("none"))) == [22.0, 9.0]


def test_devices_that_wait_for_no_reply_go_on_and_the_edge_works_its_queue_off():
    streamed = cost([load(0), load(1)], Serving("stream"))
    assert (ends(streamed), streamed.seconds) == ([14.0, 8.0], 14.0)
    assert cost([load(0), load(1)], Serving("stream", passes=2)).seconds == 26.0


def test_a_tail_on_the_device_makes_two_visits_to_the_edge_a_step():
    # 2 forward, up, 1 on the edge, down, 3 in the tail, up, 2 on the edge, down, 4 backward.
    tail = SegmentCost("tail", "device", 1.0, 2.0)
    one = DeviceLoad(0, 0, 1, 1, up_bytes=2, down_bytes=2, model_bytes=0)
    assert cost([one], Serving("queue"), segments=(FRONT, BACK, tail)).seconds == 16.0


def test_segments_behind_each_other_on_one_machine_are_one_leg():
    halves = (SegmentCost("front", "device", 0.5, 1.0), SegmentCost("middle", "device", 1.5, 3.0))
    backs = (SegmentCost("back", "edge", 0.25, 0.5), SegmentCost("head", "edge", 0.75, 1.5))
    loads = [load(0), load(1)]
    assert cost(loads, Serving("queue"), segments=(*halves, *backs)) == cost(loads, Serving("queue"))


def test_joules_are_power_times_time_and_waiting_for_the_slowest_is_idle_time():
    measured = DeviceProfile("measured", 1.0, power_active_watts=5.0, power_idle_watts=1.0)
    radio = LinkProfile("radio", 8e-6, 8e-6, transmit_watts=3.0, receive_watts=2.0)
    alone = cost([load(0)], Serving("queue"), devices=[measured], link=radio)
    assert alone.joules == 12 * 5 + 10 * 1 + 2 * 3 + 2 * 2  # 22 s, of which it computes 12 and sends and receives 2
    both = cost([load(0, steps=1), load(1)], Serving("queue"), devices=[measured, measured], link=radio)
    short = both.devices[0]
    assert short.joules == 6 * 5 + (both.seconds - 6) * 1 + 3 + 2


def test_energy_is_unknown_where_a_figure_is_missing_that_it_needs():
    measured = DeviceProfile("measured", 1.0, power_active_watts=5.0, power_idle_watts=1.0)
    assert cost([load(0)], Serving("queue"), devices=[measured]).joules is None  # the radio's
    assert cost([load(0)], Serving("none"), devices=[measured]).joules is not None  # it sends nothing


@pytest.mark.parametrize("kind", ["none", "queue", "turn", "lockstep", "stream"])
def test_the_order_of_reports_does_not_matter(kind):
    loads = [load(0, model_bytes=2), load(1, model_bytes=2)]
    assert cost(loads, Serving(kind)) == cost(loads[::-1], Serving(kind))


def test_a_trainer_tells_how_its_edge_serves():
    class Silent(Replicated):
        window = 0

    class Windowed(Sequential):
        window, passes = 4, 2.0

    assert serving_of(None) == Serving("none")
    assert serving_of(Replicated()) == Serving("queue")
    assert serving_of(Sequential("step")) == Serving("lockstep")
    assert serving_of(Sequential("round")) == Serving("turn")
    assert serving_of(Sequential("fixed"), "relayed") == Serving("turn", relayed=True)
    assert serving_of(Silent()) == Serving("stream")
    assert serving_of(Decoupled()) == Serving("stream")
    assert serving_of(Pooled()) == Serving("lockstep")
    assert serving_of(Cyclic(passes=2, window=3)) == Serving("lockstep", window=3, passes=3.0)
    assert serving_of(Windowed()) == Serving("lockstep", window=4, passes=2.0)


# Links that change with time.


@pytest.mark.parametrize(
    ("trace", "repeat", "start", "size", "seconds"),
    [
        ([[5, 0.5], [9, 2]], None, 3.0, 8, 8.0),  # 2 bytes in 2 s, 2 in 4 s, 4 in 2 s
        ([[5, 0], [9, 1]], None, 4.0, 3, 7.0),  # no link from 5 to 9
        ([[5, 0.5]], None, 100.0, 3, 6.0),  # the last factor stays
        ([[0, 1], [2, 0]], 4.0, 1.0, 3, 5.0),  # 2 s with a link, 2 s without, again and again
        ([[1, 0.5]], 2.0, 1000.5, 2, 2.5),  # .5 s at 1, 1 s at .5, 1 s at 1
        ([[0, 0], [5, 1]], None, 1.0, 0, 0.0),  # nothing to send needs no link
    ],
)
def test_a_transfer_takes_what_the_link_lets_through_meanwhile(trace, repeat, start, size, seconds):
    link = LinkProfile("changing", 8e-6, 8e-6, trace=trace, repeat_s=repeat)
    assert link.seconds(size, 8e-6, start) == pytest.approx(seconds)


def test_a_round_sees_the_link_as_it_is_at_its_time_of_the_run():
    fading = LinkProfile("fading", 8e-6, 8e-6, trace=[[100, 0.5]])
    assert cost([load(0)], Serving("queue"), link=fading).seconds == 22.0
    assert cost([load(0)], Serving("queue"), link=fading, start=100.0).seconds == 26.0


# FLOPs.


def examples(*shape, classes=3):
    return TensorExamples(torch.randn(4, *shape), torch.arange(4) % classes)


def test_flops_of_an_mlp_are_those_counted_by_hand():
    model = MLP((6,), 3, hidden=(5,))
    first, last = stage_costs(model, examples(6), CrossEntropy(), ["stage1"])
    assert (first.forward_flops, first.backward_flops) == (2 * 6 * 5, 2 * 6 * 5)  # no gradient of the input
    assert (last.forward_flops, last.backward_flops) == (2 * 5 * 3, 2 * 2 * 5 * 3)
    assert (first.parameter_bytes, first.output_shape, first.output_bytes) == (4 * (6 * 5 + 5), (5,), 20)
    assert (first.name, last.name) == ("stage1", "output")


def test_flops_of_convolutions_are_those_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.Flatten())
    first, second, *_ = stage_costs(model, examples(3, 9, 9), CrossEntropy(), ["1", "2"])
    assert (first.forward_flops, first.backward_flops) == (2 * 81 * 4 * 27, 2 * 81 * 4 * 27)
    assert (second.forward_flops, second.backward_flops) == (2 * 16 * 8 * 36, 2 * 2 * 16 * 8 * 36)


def test_attention_counts_although_cpus_have_a_fused_kernel():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    data = TensorExamples(torch.randn(4, 5, 8), torch.zeros(4, dtype=torch.int64))
    first, *_ = stage_costs(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3)), data, CrossEntropy(), ["0"])
    assert first.forward_flops == 2 * (5 * (3 * 8 * 8 + 8 * 8 + 2 * 8 * 16) + 2 * 5 * 5 * 8)


class Skipping(nn.Module):
    """A user's module, no Sequential, with a skip connection over a cut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        stem = self.stem(images)
        return self.head(self.pool(stem + self.body(stem)).flatten(1))


def flops_of_a_step(model, cut, data, loss):
    """Front and back apart, as device and edge run them: FLOPs of one sample, and the front's bytes."""
    parts = split(copy.deepcopy(model), cut)
    inputs, targets = data.batch(torch.arange(4))
    counts = []
    with FlopCounterMode(display=False) as counter:
        smashed = received(parts["front"](inputs))
        counts.append(counter.get_total_flops())
        leaf = cut_leaf(smashed)
        loss.loss(call(parts["back"], leaf.clone()), targets).backward()
        counts.append(counter.get_total_flops())
        send_back(smashed, gradient_of(leaf))
        counts.append(counter.get_total_flops())
    front = parts["front"].state_dict().values()
    return counts[0] + counts[2] - counts[1], counts[1] - counts[0], sum(t.numel() * t.element_size() for t in front)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        VGG5((3, 16, 16), 3, dropout=0.5),
        LeNet((3, 16, 16), 3),
        pytest.param(ResNet8((3, 16, 16), 3), marks=pytest.mark.shows),  # thirty cuts; `Skipping` skips, too
        Skipping(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_stages_of_any_model_add_up_to_a_step_at_any_cut(model):
    data, loss = examples(3, 16, 16), CrossEntropy()
    stages = stage_costs(model, data, loss)
    for index, stage in enumerate(stages[:-1]):
        front, back, size = flops_of_a_step(model, stage.name, data, loss)
        before, behind = stages[: index + 1], stages[index + 1 :]
        assert sum(s.forward_flops + s.backward_flops for s in before) * 4 == front
        assert sum(s.forward_flops + s.backward_flops for s in behind) * 4 == back
        assert sum(s.parameter_bytes for s in before) == size
        segments = segment_costs(model, stage.name, data, loss)
        assert [(s.forward_flops + s.backward_flops) * 4 for s in segments] == [front, back]


def test_counting_touches_neither_the_model_nor_a_random_stream():
    model = small_model("batch", dropout=0.5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    stage_costs(model, small_task().train, CrossEntropy())
    assert_same_bits(model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


# Profiles.

FILES = [file for group in ("device", "link") for file in sorted((ROOT / "configs" / group).glob("*.yaml"))]


@pytest.mark.parametrize("file", [f for f in FILES if f.stem != "mixed"], ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_number_in_a_profile_names_its_source(file):
    values = OmegaConf.to_container(OmegaConf.load(file))
    numbers = {name for name, value in values.items() if isinstance(value, int | float)}
    assert numbers
    assert values["sources"].keys() == numbers
    assert all(len(source) > 20 for source in values["sources"].values())
    assert values["name"] == file.stem


@pytest.mark.parametrize("file", [f for f in FILES if f.stem != "mixed"], ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_the_docs_show_the_figures_of_every_profile(file):
    v = OmegaConf.to_container(OmegaConf.load(file))
    if file.parent.name == "device":
        figures = [f"{v['flops_per_second']:.1e}", v["power_active_watts"], v["power_idle_watts"]]
    else:
        figures = [v["up_mbit"], v["down_mbit"], v["latency_s"] * 1000, v["transmit_watts"], v["receive_watts"]]
    row = " | ".join(["null" if figure is None else str(figure) for figure in figures])
    assert f"| `{file.stem}` | {row} |" in (ROOT / "docs" / "costs.md").read_text()


def test_draws_depend_on_seed_and_device_alone():
    shares = {"pi3": 0.25, "pi4": 0.75, "phone": 0}
    drawn = machines(shares, "edge_gpu", {"wifi_75": 1, "lte": 1})
    names = [drawn.devices.of(device, seed=7).name for device in range(1000)]
    assert [drawn.devices.of(device, seed=7).name for device in reversed(range(1000))] == names[::-1]
    assert [drawn.devices.of(device, seed=8).name for device in range(1000)] != names
    assert set(names) == {"pi3", "pi4"}
    assert 200 < names.count("pi3") < 300
    links = [drawn.links.of(device, seed=7).name for device in range(1000)]
    both = sum(link == "lte" and name == "pi3" for link, name in zip(links, names))
    assert 80 < both < 170  # who has which link does not depend on who has which device


def test_a_list_goes_by_id_and_starts_over():
    given = machines(["pi3", "pi3", DeviceProfile("mine", 1e9)], Mixed(assign=["edge_gpu", "laptop"]), "lan")
    assert [given.devices.of(device, 0).name for device in range(5)] == ["pi3", "pi3", "mine", "pi3", "pi3"]
    assert [given.edges.of(edge, 0).name for edge in range(3)] == ["edge_gpu", "laptop", "edge_gpu"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: machines("pi5", "edge_gpu", "lan"), "there is no device profile 'pi5'. There are: edge_gpu"),
        (lambda: machines("pi4", "edge_gpu", "wifi"), "there is no link profile 'wifi'. There are: lan, lte"),
        (lambda: machines({"pi3": -1}, "edge_gpu", "lan"), "give at least one profile a share above 0"),
        (lambda: machines([], "edge_gpu", "lan"), "list at least one profile"),
        (lambda: machines(UNIT, "edge_gpu", "lan"), "give a DeviceProfile"),
        (lambda: DeviceProfile("x", 0), "flops_per_second=0 of x: it must be above 0"),
        (lambda: DeviceProfile("x", 1, power_idle_watts=-1), "power_idle_watts=-1 of x: it must be at least 0"),
        (lambda: LinkProfile("x", 1, 1, trace=[[1, 0]]), "ends without a link"),
        (lambda: LinkProfile("x", 1, 1, trace=[[2, 1], [1, 1]]), "must rise"),
        (lambda: LinkProfile("x", 1, 1, trace=[[2, 1]], repeat_s=1), "it must come after the trace's last second"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


# Runs.

CHANGING = LinkProfile("changing", 1.0, 1.0, trace=[[0.5, 0.25], [0.9, 1]], repeat_s=1.0)


@pytest.mark.slow
@strategies
def test_a_run_takes_simulated_time_and_energy(strategy, tmp_path):
    result = run(strategy, out=tmp_path / "run")
    assert all(row["sim_seconds"] > 0 and row["energy_joules"] > 0 for row in result.metrics)


def test_profiles_change_no_weight():
    one = run(SplitFedV2())
    other = run(SplitFedV2(), device_profile={"pi3": 1, "phone": 1}, edge_profile="laptop", link_profile="nr5g")
    for segment in one.states:
        assert_same_bits(one.states[segment], other.states[segment])
    assert one.metrics[-1]["sim_seconds"] != other.metrics[-1]["sim_seconds"]
    assert other.metrics[-1]["energy_joules"] is None  # nobody measured the power of that link


def test_a_resumed_run_goes_on_at_its_simulated_time(tmp_path):
    whole = run(SplitFedV1(), rounds=4, link_profile=CHANGING)
    run(SplitFedV1(), rounds=2, link_profile=CHANGING, out=tmp_path / "run")
    resumed = run(SplitFedV1(), rounds=4, link_profile=CHANGING, out=tmp_path / "run", resume=True)
    times = [row["sim_seconds"] for row in whole.metrics]
    assert [row["sim_seconds"] for row in resumed.metrics] == times
    assert len(set(times)) > 1  # the link differs from round to round, so the clock matters


def test_a_run_goes_on_only_with_the_profiles_that_it_began_with(tmp_path):
    run(SplitFedV1(), out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"costs\.link='wifi_75\(up_mbit=75\.0"):
        run(SplitFedV1(), rounds=3, out=tmp_path / "run", resume=True, link_profile="lte")


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", [SplitFedV1(), SplitFedV2(), VanillaSL(), FedAvg()], ids=lambda s: type(s).__name__
)
def test_the_price_of_a_cut_is_what_a_run_with_it_takes(strategy):
    options = {
        "devices": 3,
        "edges": 2,
        "batch_size": 10,
        "local_epochs": 2,
        "partition": Dirichlet(0.5, min_samples=3),
        "up": "fsl.codecs.Int8",
        "device_profile": ["pi3", "pi4"],
        "link_profile": {"wifi_75": 1, "lte": 1},
    }
    model, task = small_model("batch"), small_task()
    prices = price(model, task, strategy=strategy, cuts=["pool", "conv2"], **options)
    assert [p.cut for p in prices] == ["pool", "conv2"]
    for priced in prices:
        row = fsl.simulate(model, task, strategy=strategy, cut=priced.cut, rounds=1, **options).metrics[0]
        for name in ("up_bytes", "down_bytes", "model_bytes"):
            assert row[name] == getattr(priced, name), name
        assert row["sim_seconds"] == pytest.approx(priced.sim_seconds, rel=1e-12)
        assert row["energy_joules"] == pytest.approx(priced.energy_joules, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "codec"), [("block2.body.0", "identity"), ("block1.body.0", "int8")])
def test_a_price_counts_all_that_crosses(cut, codec):
    """A skip connection crosses these cuts, beside the output of the module that they name."""
    model, data = ResNet8((3, 16, 16), 3, norm="group"), examples(3, 16, 16)
    options = {"strategy": SplitFedV1(), "devices": 2, "batch_size": 3, "up": codec, "down": codec}
    (told,) = price(model, data, cuts=[cut], **options)
    row = fsl.simulate(model, data, cut=cut, rounds=1, **options).metrics[0]
    assert (told.up_bytes, told.down_bytes) == (row["up_bytes"], row["down_bytes"])


def test_every_possible_cut_is_priced():
    prices = price(VGG5((3, 16, 16), 3), examples(3, 16, 16), strategy=SplitFedV1(), devices=2)
    assert [p.cut for p in prices if "." not in p.cut] == ["conv1", "pool1", "conv2", "pool2", "conv3", "fc1"]


def test_the_head_of_a_devices_own_loss_is_counted_with_its_front():
    model, data = MLP((1, 8, 8), 10), digits().train
    head = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 10))
    plain = segment_costs(model, None, data, CrossEntropy())
    with_head = segment_costs(model, None, data, CrossEntropy(), head)
    own = 2 * 128 * 10  # a product forward, one for the weights and one for the input backward
    assert with_head[0].backward_flops == plain[0].backward_flops + 3 * own
    assert with_head[0].forward_flops == plain[0].forward_flops
    assert with_head[1:] == plain[1:]


class Uncountable(torch.autograd.Function):
    """Works in training, and not under a counter: it has no rule for what it is asked there."""

    @staticmethod
    def forward(context, values):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise NotImplementedError("not under a counter")
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient


class Odd(nn.Module):
    def forward(self, values):
        return Uncountable.apply(values)


def test_a_model_whose_work_cannot_be_counted_is_trained_all_the_same(caplog):
    model = small_model()
    model.head.append(Odd())
    (row,) = run(SplitFedV1(), model, rounds=1).metrics
    assert row["sim_seconds"] is None
    assert row["train_loss"] > 0
    assert "the model's work cannot be counted (NotImplementedError: not under a counter)" in caplog.text
