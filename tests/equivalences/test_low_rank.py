"""SFT: a transformer cut inside of a block trains as the unsplit one does, and over gRPC as in one process."""

import pytest
import torch
from fsl.strategies import SGLR, FedAvg, SplitFedV1

import fsl
from fsl.codecs import Float16
from fsl.data import from_text
from fsl.models import huggingface
from fsl.models.lora import with_adapters
from tests.helpers.runs import ADAM, assert_same_bits, assert_same_result
from tests.helpers.small_texts import TINY, save_texts, save_tokenizer
from tests.helpers.wired import Wired

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

HALF = {"up": Float16, "down": Float16}
LORA = {"r": 2, "targets": ["query", "reduce", "expand"], "train": ["classifier"]}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    tokenizer = save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return from_text(str(save_texts(tmp_path_factory.mktemp("texts"), 24)), tokenizer=str(tokenizer))


def model_of(r=4, seed=0, **options):
    torch.manual_seed(seed)
    return fsl.low_rank(huggingface(config=TINY, classes=2), r, **options)


def adapted(seed=0):
    pytest.importorskip("peft")
    model = model_of(seed=seed)
    torch.manual_seed(1)  # nodes draw the same adapters, and get another base from the run
    return with_adapters(model, fsl.Lora(**LORA))


def trained(strategy, model, task, **options):
    options = {"devices": 2, "rounds": 1, "batch_size": 6, "optimizer": ADAM, "progress": False} | options
    return fsl.simulate(model, task, strategy=strategy, **options)


@pytest.mark.parametrize("build", [model_of, adapted])
def test_splitfed_v1_equals_fedavg_on_the_unsplit_model(build, task):
    one, other = (trained(strategy, build(), task) for strategy in (SplitFedV1(), FedAvg()))
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    assert one.metrics[0]["train_loss"] == other.metrics[0]["train_loss"]


def test_a_second_cut_keeps_the_labels(task):
    model = model_of()
    cuts = (model.default_cut, "bert.encoder.layer.1")
    one, other = (trained(strategy, model, task, cut=cuts) for strategy in (SplitFedV1(), FedAvg()))
    assert set(one.states) == {"front", "back", "tail"}
    assert_same_bits(one.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize(
    ("strategy", "build"), [(SplitFedV1(), model_of), (SplitFedV1(), adapted), (SGLR(phi=0.5, alpha=0.5), model_of)]
)
def test_over_the_wire_equals_in_one_process(strategy, build, task, tmp_path):
    wired = trained(strategy, build(), task, backend=Wired(folder=tmp_path, edges=1, model=build(seed=9)))
    assert_same_result(trained(strategy, build(), task), wired)
    assert wired.metrics[0]["lost"] == {}


def test_r_values_a_token_cross_both_ways(task):
    """By float16 each takes two bytes less; whatever else is in messages (masks, labels, headers) stays the same."""
    whole, half = (trained(SplitFedV1(), model_of(), task, **codecs).metrics[0] for codecs in ({}, HALF))
    tokens = task.train.inputs["input_ids"].numel()
    for way in ("up_bytes", "down_bytes"):
        assert whole[way] - half[way] == pytest.approx(4 * 2 * tokens, abs=8 * 4 * 2)  # names told in headers
    assert whole["down_bytes"] < 4 * 4 * tokens + 4 * 1000


def test_adapters_alone_are_sent(task):
    model = adapted()
    front = fsl.split(model, example=task.blank(3))["front"]
    sent = sum(p.nbytes for p in front.parameters() if p.requires_grad)
    assert trained(SplitFedV1(), model, task).metrics[0]["model_bytes"] == 2 * 2 * sent
