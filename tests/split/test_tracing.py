"""What a traced forward keeps, what is refused because it would be lost, and what needs no refusal."""

import copy
import pickle
import random
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from fsl.errors import SplitError
from fsl.split.cutting import split

INPUTS = torch.linspace(-2, 2, 24).view(6, 4)


class Three(nn.Module):
    """Three linear layers for the forwards below."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.width = 4
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.plain = torch.zeros(4)


def model_of(forward):
    torch.manual_seed(0)
    return type("Own", (Three,), {"forward": forward})()


def without_gradients(self, x):
    with torch.no_grad():
        x = self.a(x)
    return self.c(self.b(x))


def inference(self, x):
    with torch.inference_mode():
        x = self.a(x)
    return self.c(self.b(x))


@torch.no_grad()
def decorated(self, x):
    return self.a(x)


def by_a_helper(self, x):
    return self.c(self.b(decorated(self, x)))


def autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = self.b(self.a(x))
    return self.c(x.float())


def default_dtype(self, x):
    torch.set_default_dtype(torch.float64)
    try:
        return self.c(self.b(self.a(x)))
    finally:
        torch.set_default_dtype(torch.float32)


def checkpointed(self, x):
    return self.c(checkpoint(self.b, self.a(x), use_reentrant=False))


def reentrant(self, x):
    return self.c(checkpoint(self.b, self.a(x), use_reentrant=True))


def saved_on_cpu(self, x):
    with torch.autograd.graph.save_on_cpu():
        x = self.a(x) * 2
    return self.c(self.b(x))


def attention(self, x):
    x = self.b(self.a(x))
    with sdpa_kernel(SDPBackend.MATH):
        x = F.scaled_dot_product_attention(x, x, x)
    return self.c(x)


def reseeded(self, x):
    torch.manual_seed(0)
    return self.c(F.dropout(self.b(self.a(x)), training=self.training))


def forked(self, x):
    with torch.random.fork_rng():
        x = F.dropout(self.a(x), training=self.training)
    return self.c(self.b(x))


def python_draw(self, x):
    return self.c(self.b(self.a(x) if random.random() < 0.5 else x))


def plain_tensor(self, x):
    self.plain.add_(1)
    return self.c(self.b(self.a(x)) + self.plain)


LOST = [
    (without_gradients, "'a' runs under torch.no_grad"),
    (inference, "'a' runs under torch.inference_mode"),
    (by_a_helper, "'a' runs under torch.no_grad"),
    (autocast, "'a' runs under torch.autocast"),
    (default_dtype, "runs under another default dtype"),
    (checkpointed, "'b' runs under torch.utils.checkpoint"),
    (reentrant, "'b' runs under torch.no_grad"),
    (saved_on_cpu, "saved_tensors_hooks"),
    (attention, "runs under sdpa_kernel"),
    (reseeded, "runs under a random seed of its own"),
    (forked, "it forks the random numbers"),
    (python_draw, "it draws random numbers by Python or NumPy"),
    (plain_tensor, "it changes the tensor 'plain' in place: register it as a buffer"),
]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("forward", "reason"), LOST, ids=[forward.__name__ for forward, _ in LOST])
def test_what_a_graph_would_lose_is_refused_by_name(forward, reason):
    model = model_of(forward)
    drawn = torch.get_rng_state(), random.getstate()
    with pytest.raises(SplitError) as refused:
        split(model, "a")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
    assert torch.equal(model.plain, torch.zeros(4))
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert random.getstate() == drawn[1]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            return self.a(x)


def test_a_context_in_a_module_of_its_own_is_kept():
    model = nn.Sequential(Encoder(), nn.Linear(4, 4), nn.Linear(4, 3))
    parts = split(model, "1")
    parts["back"](parts["front"](INPUTS)).sum().backward()
    assert model[0].a.weight.grad is None
    assert model[1].weight.grad is not None


def add_hook(register):
    def prepare(model):
        getattr(model, register)(lambda *args: None)

    return prepare


def replace_forward(model):
    model.forward = MethodType(lambda self, x: x, model)


class Called(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) * 2


TAKEN_APART = [
    (add_hook("register_forward_hook"), "has a forward hook"),
    (add_hook("register_forward_pre_hook"), "has a forward pre-hook"),
    (add_hook("register_full_backward_hook"), "has a backward hook"),
    (add_hook("register_full_backward_pre_hook"), "has a backward pre-hook"),
    (replace_forward, "has had its forward replaced"),
]


@pytest.mark.parametrize("build", [lambda: model_of(plain), lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))])
@pytest.mark.parametrize(("prepare", "reason"), TAKEN_APART, ids=[reason for _, reason in TAKEN_APART])
def test_what_runs_only_with_the_whole_module_is_refused(build, prepare, reason):
    model = build()
    prepare(model)
    with pytest.raises(SplitError, match=reason):
        split(model, "a" if hasattr(model, "a") else "0")


def test_hooks_of_a_container_that_is_taken_apart_are_refused_and_others_are_kept():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    inner.register_forward_hook(lambda module, inputs, outputs: outputs * 2)
    model = nn.Sequential(inner, nn.Linear(4, 3))
    with pytest.raises(SplitError, match="Sequential has a forward hook"):
        split(model, "0.0")
    parts = split(model, "0")
    assert torch.equal(parts["back"](parts["front"](INPUTS)), model(INPUTS))


def test_a_call_of_its_own_is_refused():
    with pytest.raises(SplitError, match="has a __call__ of its own"):
        split(Called(nn.Linear(4, 4), nn.Linear(4, 3)), "0")


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(self._modules.values()))


def test_a_sequential_with_an_order_of_its_own_keeps_it():
    model = Backwards(nn.Linear(4, 3), nn.Linear(4, 4))
    parts = split(model, "1")
    assert torch.equal(parts["back"](parts["front"](INPUTS)), model(INPUTS))


def computed_buffer(self, x):
    return self.c(self.b(self.a(x) * (self.scale + 1)))


def test_what_is_computed_from_buffers_follows_them():
    model = model_of(computed_buffer)
    parts = split(model, "b")
    model.scale.fill_(5.0)
    assert torch.equal(parts["back"](parts["front"](INPUTS)), model(INPUTS))


def plain(self, x):
    return self.c(self.b(self.a(x)))


def default_argument(self, x, mask=None, *, scale=2.0):
    x = self.a(x) * scale
    return self.c(self.b(x if mask is None else x * mask))


def variable(self, *inputs, **options):
    return self.c(self.b(self.a(inputs[0])))


def size_behind(self, x):
    rows = x.size(0)
    return self.c(self.b(self.a(x)).view(rows, -1))


def shape_behind(self, x):
    rows, _ = x.shape
    x = self.a(x)
    return self.c(self.b(x).reshape(rows, -1) + torch.zeros(x.shape[0], 1, dtype=x.dtype, device=x.device))


def length_behind(self, x):
    rows = 2 * len(x)
    return self.c(self.b(self.a(x)).view(rows // 2, 4))


def factories(self, x):
    x = self.b(self.a(x) + torch.ones(x.size(0), 1))
    return self.c(x + torch.arange(x.size(1)))


def asserts(self, x):
    assert x.dim() == 2 and x.size(1) == self.width, f"{x.shape}"  # noqa: PT018
    assert x.dim() in (2, 4) and not x.dim() == 7  # noqa: PT018, SIM201
    assert 1 < x.dim() < 3
    if x.dim() != 2 or x.size(1) > 9:
        raise ValueError(f"{x.shape}")
    if not x.dim() == 2:  # noqa: SIM201
        message = "two dimensions"
        raise ValueError(message)
    if x.dim() not in (2, 3):
        raise ValueError
    return self.c(self.b(self.a(torch.flatten(x, 1))))


def weights_shape(self, x):
    for index in range(self.b.weight.shape[0]):
        x = x + index
    return self.c(self.b(self.a(x)))


NO_NEED = [
    default_argument,
    variable,
    size_behind,
    shape_behind,
    length_behind,
    factories,
    asserts,
    weights_shape,
    computed_buffer,
]


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["a", "b"])
@pytest.mark.parametrize("forward", NO_NEED, ids=[forward.__name__ for forward in NO_NEED])
def test_what_needs_no_refusal_gives_the_model_and_its_gradients_to_the_bit(forward, cut):
    model = model_of(forward)
    copied = copy.deepcopy(model)
    expected = copied(INPUTS)
    expected.square().sum().backward()
    front, back = (pickle.loads(pickle.dumps(s.module)) for s in split(model, cut))
    for rows in (6, 3):  # whatever the batch
        assert torch.equal(back(front(INPUTS[:rows])), copied(INPUTS[:rows]))
    smashed = front(INPUTS)
    leaf = smashed.detach().requires_grad_()
    back(leaf.clone()).square().sum().backward()
    smashed.backward(leaf.grad)
    found = dict(front.named_parameters()) | dict(back.named_parameters())
    assert all(torch.equal(p.grad, found[name].grad) for name, p in copied.named_parameters())


def test_a_check_is_made_where_its_data_are():
    front = split(model_of(asserts), "a")["front"]
    with pytest.raises(ValueError, match=r"a check of the model's forward failed: assert x\.dim"):
        front(torch.zeros(6, 5))
    with pytest.raises(ValueError, match="a check of the model's forward failed"):
        front(torch.zeros(6, 4, 4))


def either(self, x):
    if x.dim() > 2 and x.size(0) > 3:
        raise ValueError
    return self.c(self.b(self.a(x)))


def chooses_in_a_check(self, x):
    assert (self.a if x.sum() > 0 else self.b) is not None
    return self.c(self.b(self.a(x)))


def any_of_them(self, x):
    if not any(x.dim() == number for number in (3, 2)):
        raise ValueError
    return self.c(self.b(self.a(x)))


def chooses(self, x):
    if x.dim() == 1:
        x = x.unsqueeze(0)
    return self.c(self.b(self.a(x)))


def needs_a_mask(self, x, mask, scale=1.0):
    return self.c(self.b(self.a(x)) * mask * scale)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (either, "control flow"),
        (chooses_in_a_check, "control flow"),
        (any_of_them, "control flow"),
        (chooses, "control flow"),
        (needs_a_mask, r"takes 2 inputs \(x, mask\); give a batch"),
    ],
)
def test_what_must_be_refused_still_is(forward, reason):
    with pytest.raises(SplitError, match=reason):
        split(model_of(forward), "a")


def folds(self, x):
    rows = x.size(0)
    return self.c(self.b(self.a(x.view(-1, 2, 4).flatten(0, 1)[::2])).view(rows // 2, -1, 4))


def test_a_front_that_makes_other_rows_is_an_error_and_no_wrong_result():
    front = split(model_of(folds), "a")["front"]
    with pytest.raises(SplitError, match=r"needs the rows of a tensor in front of it, 6, and the front's output has 3"):
        front(INPUTS)


class Vit(nn.Module):
    """Patches, a class token and its position, as vision transformers have them."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2)))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        rows, channels, height, _ = x.shape
        torch._assert(height == 8, "eight pixels")
        if channels != 1:
            raise ValueError(f"{channels} channels")
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(rows, -1, -1), x], dim=1) + self.positions
        return self.head(self.layers(x)[:, 0])


class Residual(nn.Module):
    """As torchvision's ResNets: blocks with a downsampled identity, `x.view(x.size(0), -1)` at the end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)

    def forward(self, x):
        rows = x.size(0)
        x = self.layer1(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return self.fc(self.pool(x).view(rows, -1))


@pytest.mark.parametrize(
    ("build", "cut"), [(Vit, "patch"), (Vit, "layers"), (Vit, "layers.0"), (Residual, "bn1"), (Residual, "layer1.0")]
)
def test_common_models_are_cut_to_the_bit(build, cut):
    torch.manual_seed(0)
    model, images = build(), torch.randn(5, 1, 8, 8)
    whole = copy.deepcopy(model)(images)
    parts = split(model, cut)
    assert torch.equal(parts["back"](parts["front"](images)), whole)
