"""Cutting models: what can be cut, that nothing changes by it, and that the states join again."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fsl.errors import SplitError
from fsl.split.cutting import join, possible_cuts, split


class Three(nn.Module):
    """Three linear layers for the forwards below."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))


class Plain(Three):
    def forward(self, x):
        return self.c(F.relu(self.b(torch.tanh(self.a(x)))))


class FunctionalDropout(Three):
    def forward(self, x):
        x = F.dropout(self.a(x), p=0.5, training=self.training)
        return self.c(F.dropout(self.b(x), p=0.5, training=self.training))


class Skip(Three):
    def forward(self, x):
        x = self.a(x)
        return self.c(x + self.b(x))


class Table(Three):
    """A parameter of the root used in front, one made ready in front for the back, a buffer, and unused modules."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("shift", torch.ones(4), persistent=False)
        self.auxiliary = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        self.alone = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        late = self.late * 2
        late.view(4).add_(1)
        x = self.b(self.a(x + self.early) * self.scale)
        return self.c(x + late + self.shift)


class InPlace(Three):
    def forward(self, x):
        x = self.a(x)
        x.add_(1)
        x = self.b(x)
        x.mul_(2)
        return self.c(F.relu(x, inplace=True))


class FirstToken(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x.unsqueeze(1)))[:, 0])


class Constants(Three):
    def __init__(self):
        super().__init__()
        self.factor = torch.tensor(3.0)

    def forward(self, x):
        x = self.b(self.a(x) + torch.arange(4)) * self.factor
        return self.c(x + torch.tensor(1.0 if self.training else 2.0))


class Twice(Three):
    def forward(self, x):
        return self.c(self.b(self.a(self.a(x))))


class SecondName(Three):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.same_gain = self.gain

    def forward(self, x):
        return self.c(self.b(self.a(x * self.gain)))


class DoubledSequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * 2


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Plain(), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.flatten(self.body(x), 1))


def sequential():
    inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
    return nn.Sequential(inner, Plain(), nn.Linear(4, 4), nn.Identity())


def own_parameter():
    model = sequential()
    model.register_parameter("own", nn.Parameter(torch.ones(2)))
    model[0].register_buffer("inner", torch.ones(2))
    return model


def doubled():
    return DoubledSequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))


CUTS = {
    Plain: ["a", "b"],
    FunctionalDropout: ["a", "b"],
    Skip: ["a", "b"],
    Table: ["a", "b"],
    InPlace: ["a", "b"],
    FirstToken: ["a", "b"],
    Constants: ["a", "b"],
    Twice: ["a", "b"],
    SecondName: ["a", "b"],
    Nested: ["body", "body.0", "body.0.a", "body.0.b", "body.0.c", "body.1", "body.2", "body.2.0", "body.2.1"],
    sequential: ["0", "0.0", "0.1", "0.2", "0.3", "1", "1.a", "1.b", "1.c"],
    own_parameter: ["0", "0.0", "0.1", "0.2", "0.3", "1", "1.a", "1.b", "1.c"],
    doubled: ["0", "1", "2"],
}
MODELS_AND_CUTS = [(build, cut) for build, cuts in CUTS.items() for cut in cuts]
INPUTS = torch.linspace(-2, 2, 12).view(3, 4)


def make(build):
    torch.manual_seed(0)
    return build()


def seeded(forward, *segments):
    torch.manual_seed(1)
    x = INPUTS
    for segment in segments:
        x = forward(segment, x)
    return x


def call(segment, x):
    return segment(x)


def state_of(parts):
    return join({s.name: s.module.state_dict() for s in parts})


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("build", CUTS)
def test_possible_cuts_are_exactly_those_that_split_accepts(build):
    model = make(build)
    accepted = []
    for name, _ in model.named_modules():
        try:
            split(model, name)
            accepted.append(name)
        except SplitError:
            continue
    assert possible_cuts(model) == accepted
    assert set(accepted) == set(CUTS[build])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("build", "cut"), MODELS_AND_CUTS)
def test_the_segments_behind_each_other_are_the_model_to_the_bit(build, cut, training):
    model = make(build).train(training)
    whole = seeded(call, copy.deepcopy(model))
    parts = split(model, cut)
    assert torch.equal(seeded(call, parts["front"], parts["back"]), whole)


@pytest.mark.slow
def test_joining_the_segments_gives_the_models_state():
    for build, cut in MODELS_AND_CUTS:
        model = make(build)
        parts = split(model, cut)
        front, back = (set(s.module.state_dict()) for s in parts)
        assert not front & back
        assert_equal_states(state_of(parts), model.state_dict())


@pytest.mark.parametrize("build", CUTS)
def test_gradients_through_the_cut_are_the_models(build):
    model = make(build)
    seeded(call, model).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    model = make(build)
    parts = split(model, CUTS[build][0])
    torch.manual_seed(1)
    smashed = parts["front"](INPUTS)
    leaf = smashed.detach().clone().requires_grad_()
    parts["back"](leaf.clone()).sum().backward()
    smashed.backward(leaf.grad)
    for name, parameter in model.named_parameters():
        grads = expected[name], parameter.grad
        assert grads == (None, None) or torch.equal(*grads), name


def test_segments_share_the_models_tensors():
    for build in (sequential, Table):
        model = make(build)
        parts = split(model, CUTS[build][0])
        ids = {id(p) for s in parts for p in s.module.parameters()}
        assert ids == {id(p) for p in model.parameters()}


def test_a_traced_segment_follows_its_mode_at_run_time():
    for segment in split(make(FunctionalDropout), "b"):
        part = segment.module
        torch.manual_seed(1)
        assert not torch.equal(part.train()(INPUTS), part(INPUTS))
        assert torch.equal(part.eval()(INPUTS), part(INPUTS))
        assert not torch.equal(part.train()(INPUTS), part(INPUTS))


@pytest.mark.parametrize("build", [FunctionalDropout, sequential])
@pytest.mark.parametrize("training", [True, False])
def test_splitting_leaves_the_models_mode(build, training):
    model = make(build).train(training)
    next(model.children()).train(not training)
    before = [m.training for m in model.modules()]
    parts = split(model, CUTS[build][1])
    assert [m.training for m in model.modules()] == before
    assert all(s.module.training is training for s in parts)


class Remembers(Three):
    def forward(self, x):
        self.last = self.a(x)
        return self.c(self.b(self.last) + torch.tensor(1.0))


def test_tracing_leaves_nothing_on_the_model():
    model = make(Remembers)
    attributes = dict(vars(model))
    split(model, "b")
    assert vars(model) == attributes


class Replaces(Three):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        self.mean = self.a(x).detach().mean(0)
        return self.c(self.b(x - self.mean))


def test_a_buffer_that_a_trace_would_lose_is_refused_by_name_and_left_as_it_was():
    model = make(Replaces)
    mean = model.mean
    with pytest.raises(SplitError, match=r"another tensor in place of the buffer 'mean'.*self\.mean\.copy_"):
        split(model, "b")
    assert model.mean is mean
    assert model.seen == []


class Counts(Three):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        h = self.b(self.a(x))
        if self.training:
            self.steps += 1
            self.mean *= 0.9
            self.mean += 0.1 * h.detach().mean(0)
        return self.c(h - self.mean)


def test_buffers_that_forward_adds_to_in_place_are_those_of_the_model():
    model, whole = make(Counts), make(Counts)
    parts = split(model, "b")
    for _ in range(2):
        assert torch.equal(parts["back"](parts["front"](INPUTS)), whole(INPUTS))
    state = join({segment.name: segment.module.state_dict() for segment in parts})
    assert state["steps"] == 2
    assert torch.equal(state["mean"], whole.mean)


@pytest.mark.parametrize("used", [False, True], ids=["before its first use", "after its first use"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
@pytest.mark.parametrize("build", [Table, Constants])
def test_a_copy_of_a_traced_split_works_and_is_independent(build, duplicate, used):
    parts = split(make(build).eval(), "b")
    if used:
        seeded(call, *(s.module for s in parts))
    front, back = (duplicate(s.module) for s in parts)
    before = seeded(call, parts["front"], parts["back"])
    assert torch.equal(seeded(call, front, back), before)
    with torch.no_grad():
        for parameter in front.parameters():
            parameter.zero_()
    assert not torch.equal(seeded(call, front, back), before)
    assert torch.equal(seeded(call, parts["front"], parts["back"]), before)


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [Table, sequential])
def test_parameters_put_into_their_owners_tables_take_effect(build, training, copied):
    model = make(build).train(training)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    modules = [s.module for s in split(model, CUTS[build][1])]
    seeded(call, *modules)  # so that the graphs are compiled before the swap
    modules = copy.deepcopy(modules) if copied else modules
    for module in modules:
        for _, owner in module.named_modules():
            for key, parameter in list(owner._parameters.items()):
                owner._parameters[key] = nn.Parameter(parameter.detach() * 2)
    assert torch.equal(seeded(call, *modules), seeded(call, doubled))


@pytest.mark.parametrize(
    ("build", "cuts"),
    [
        (sequential, ("0.1", "1")),
        (sequential, ("0", "1.b")),
        (Plain, ("a", "b")),
        (Table, ("a", "b")),
        (Nested, ("body.0.b", "body.2.0")),
    ],
)
def test_two_cuts_put_a_tail_on_the_device(build, cuts):
    model = make(build)
    whole = seeded(call, copy.deepcopy(model))
    parts = split(model, cuts)
    assert [(s.name, s.place) for s in parts] == [("front", "device"), ("back", "edge"), ("tail", "device")]
    assert parts.cuts == cuts
    assert torch.equal(seeded(call, *(s.module for s in parts)), whole)
    assert_equal_states(state_of(split(model, cuts)), model.state_dict())


@pytest.mark.parametrize("cuts", [("1", "0"), ("0", "0"), ("1", "0.2")])
def test_cuts_out_of_order_are_refused(cuts):
    with pytest.raises(SplitError, match=rf"cut='{cuts[1]}' cannot be made: it is not behind '{cuts[0]}'"):
        split(make(sequential), cuts)


def test_a_front_may_be_without_parameters():
    parts = split(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "0")
    assert not parts["front"].state_dict()
    assert list(parts["back"].state_dict()) == ["1.weight", "1.bias"]


def tied_sequential():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


class TiedByUse(Three):
    def forward(self, x):
        return F.linear(self.c(self.b(self.a(x))), self.a.weight)


class SharedBuffer(Three):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x):
        return self.c(self.b(self.a(x * self.scale)) * self.scale)


class TwoInputs(Three):
    def forward(self, x, mask):
        return self.c(self.b(self.a(x)) * mask)


class Flow(Three):
    def forward(self, x):
        return self.c(x) if self.a(x).sum() > 0 else self.b(x)


class Draws(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x)) + torch.randn(4))


class InputAgain(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x))).view(x.shape)


class InputSkip(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x)) + x)


class MixedSkip(Three):
    """What crosses is made of a weight, too, and has the data in it all the same."""

    def forward(self, x):
        both = torch.cat([x, self.a(x)], 1)
        return self.c(self.b(both[:, 4:]) + both[:, :4])


class DerivedSkip(Three):
    def forward(self, x):
        doubled = x * 2
        return self.c(self.b(self.a(doubled)) + doubled)


class Recurrent(Three):
    def __init__(self):
        super().__init__()
        self.b = nn.LSTM(4, 4)

    def forward(self, x):
        x, _ = self.b(self.a(x))
        return self.c(x)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class ReturnsPair(Three):
    def __init__(self):
        super().__init__()
        self.b = Pair()

    def forward(self, x):
        first, second = self.b(self.a(x))
        return self.c(first * second)


class Output(dict):
    @property
    def hidden(self):
        return self["hidden"]

    def to_hidden(self):
        return self["hidden"]


class ReturnsDict(nn.Linear):
    def forward(self, x):
        return Output(hidden=super().forward(x))


class OfADict(Three):
    def __init__(self, pick):
        super().__init__()
        self.b, self.pick = ReturnsDict(4, 4), pick

    def forward(self, x):
        return self.c(self.pick(self.b(self.a(x))))


ENDS_IN_IDENTITY = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity(), nn.Sequential())
REFUSED = [
    (InputSkip, "a", "the model's input 'x' is needed behind 'a', and data never leave a device"),
    (MixedSkip, "b", "'cat', made of the model's input 'x', is needed behind 'b', and data never leave a device"),
    (DerivedSkip, "b", "'mul', made of the model's input 'x', is needed behind 'b', and data never leave a device"),
    (Plain, "c", "there is nothing behind 'c'; possible cuts: a, b"),
    (Plain, "nope", "the model has no module of that name; possible cuts: a, b"),
    (Plain, "", "the model has no module of that name; possible cuts: a, b"),
    (Table, "auxiliary", "forward does not call 'auxiliary'; possible cuts: a, b"),
    (lambda: ENDS_IN_IDENTITY, "1", "there is nothing behind '1'; possible cuts: 0"),
    (tied_sequential, "0", "'0.weight' and '2.weight' are one tensor that is used on both sides"),
    (tied_sequential, "1", "so that front and tail hold it, or cut elsewhere; possible cuts: 2"),
    (TiedByUse, "a", "'a.weight' is used on both sides"),
    (SharedBuffer, "b", "'scale' is used on both sides"),
    (TwoInputs, "a", "TwoInputs takes 2 inputs (x, mask); give a batch that has them: split(model, at, example=batch)"),
    (Flow, "a", "the forward of Flow cannot be traced by torch.fx (symbolically traced variables"),
    (Draws, "a", "the forward of Draws cannot be traced by torch.fx (it draws random numbers"),
    (lambda: OfADict(lambda o: o.to_hidden()), "b", "'b' returns no tensor (.to_hidden of it is used)"),
]


@pytest.mark.parametrize(("build", "cut", "reason"), REFUSED)
def test_a_cut_that_cannot_be_made_is_refused_in_one_line_with_those_that_can(build, cut, reason):
    with pytest.raises(SplitError) as refused:
        split(make(build), cut)
    message = str(refused.value)
    assert message.startswith(f"cut={cut!r} cannot be made: ")
    assert reason in message
    assert "\n" not in message
    assert "possible cuts: " in message or message.endswith("it cannot be cut anywhere")


def test_a_model_without_a_default_cut_lists_the_possible_ones():
    with pytest.raises(SplitError, match="Plain has no default cut, so name one; possible cuts: a, b"):
        split(make(Plain))


@pytest.mark.parametrize("at", [1, ("a", 2), None.__class__])
def test_a_cut_is_a_name(at):
    with pytest.raises(SplitError, match="a cut is the name of a module, a string; possible cuts: a, b"):
        split(make(Plain), at)


@pytest.mark.parametrize("at", [(), ("a", "b", "c")])
def test_one_or_two_cuts_can_be_made(at):
    with pytest.raises(SplitError, match=r"one cut .* or two"):
        split(make(Plain), at)


def test_an_unknown_segment_is_a_key_error():
    with pytest.raises(KeyError):
        split(make(Plain), "a")["tail"]


def test_joining_refuses_unequal_values_of_one_key():
    same = {"w": torch.ones(2)}
    assert_equal_states(join({"front": same, "back": {"w": torch.ones(2)}}), same)
    with pytest.raises(SplitError, match="segment 'back' has 'w', which an earlier segment has with other values"):
        join({"front": same, "back": {"w": torch.zeros(2)}})


def test_tracing_does_not_disturb_modules_that_run_in_other_threads():
    layer, inputs, results, done = nn.Linear(4, 4), torch.randn(2, 4), [], threading.Event()
    expected = layer(inputs)

    class Waits(Three):
        def forward(self, x):
            x = self.c(self.b(self.a(x)))
            other = threading.Thread(target=lambda: results.append(layer(inputs)))
            other.start()
            other.join()
            torch.ones(1)
            done.set()
            return x

    split(Waits(), "a")
    assert done.is_set()
    assert len(results) == 2
    assert all(torch.equal(result, expected) for result in results)
