"""Causal language models, U-shaped: tied embeddings, adapters on every segment, and both against the unsplit model."""

import pytest
import torch
from fsl.strategies import PSL, FedAvg, FedFly, SplitFedV1, SplitFedV3, VanillaSL
from safetensors.torch import load_file

import fsl
from fsl import seeds
from fsl.errors import ConfigError, SplitError
from fsl.mobility import RandomMobility
from fsl.models.lora import has_adapters, with_adapters
from fsl.privacy import DPSGD, Privacy
from tests.helpers.causal import ALPHABET, CUTS, decoder, next_letter, text_task
from tests.helpers.each_time import each_time
from tests.helpers.runs import ADAM, KEPT, assert_same_bits, assert_same_result, assert_same_run, name_of, run
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

STRATEGIES = [SplitFedV1(), SplitFedV3(), VanillaSL()]
each_kind_of_front = pytest.mark.parametrize(
    "strategy", each_time({name_of(s): s for s in STRATEGIES}, ["SplitFedV3-", "VanillaSL-fixed"])
)


def adapted(tied=False, dropout=0.0, **options):
    torch.manual_seed(1)
    return fsl.lora(decoder(tied, dropout), **({"r": 2, "targets": ["query", "value"], "dropout": dropout} | options))


MODELS = {"untied": decoder, "tied": lambda **o: decoder(tied=True, **o), "lora": adapted}
models = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def trained(strategy, model, **options):
    options = {"cut": CUTS, "batch_size": 7, "optimizer": ADAM, "objective": next_letter} | options
    return run(strategy, model, data=text_task(), **options)


@pytest.mark.parametrize("build", each_time(MODELS, ["tied", "lora"]))  # adapters are on the untied one
def test_u_shaped_v1_equals_fedavg(build):
    options = {"devices": 4, "edges": 2}
    one, other = (trained(strategy, build(dropout=0.1), **options) for strategy in (SplitFedV1(), FedAvg()))
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert (mine["train_loss"], mine["loss"]) == (theirs["train_loss"], theirs["loss"])


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.shows), True])
def test_one_device_equals_training_the_unsplit_model(tied):
    task, model = text_task(), decoder(tied)
    found = trained(SplitFedV1(), model, devices=1, rounds=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM.lr)
    draw = seeds.torch_generator(0, "batches", device=0, round=1, step=0)
    for rows in torch.randperm(len(task.train), generator=draw).split(7):
        batch, targets = task.train.batch(rows)
        optimizer.zero_grad()
        next_letter(model(batch), targets).backward()
        optimizer.step()
    assert_same_bits(model.state_dict(), found.model.state_dict())


# V3's fronts are files of their own; V1's and vanilla's model is one.
@each_kind_of_front
def test_tied_weights_stay_tied(strategy, tmp_path):
    """In what is written, for devices with fronts of their own too, and over the wire as in one process."""
    options = {"devices": 4, "edges": 2, "optimizer": KEPT}
    found = trained(strategy, decoder(tied=True), out=tmp_path / "run", **options)
    wired = trained(strategy, decoder(tied=True), backend=Wired(folder=tmp_path / "wired"), **options)
    assert_same_result(found, wired)
    private = strategy.fronts == "private"
    file = load_file(tmp_path / "run" / ("fronts/0.safetensors" if private else "model.safetensors"))
    assert torch.equal(file["letters.weight"], file["head.weight"])
    assert not torch.equal(file["letters.weight"], decoder(tied=True).letters.weight)
    if not private:
        assert found.model.head.weight is found.model.letters.weight
        assert file.keys() == decoder(tied=True).state_dict().keys()


def test_devices_in_lockstep_have_their_own_tied_weights(tmp_path):
    """In one process each device's tail follows the fronts of all; on nodes of their own none meets another's."""
    apart = Wired(folder=tmp_path, device_nodes=3, edges=1)
    assert_same_result(trained(PSL(), decoder(tied=True)), trained(PSL(), decoder(tied=True), backend=apart))


@pytest.mark.parametrize("strategy", [pytest.param(SplitFedV1(), marks=pytest.mark.shows), SplitFedV3()], ids=name_of)
def test_tied_weights_stopped_and_resumed(strategy, tmp_path):
    whole = trained(strategy, decoder(tied=True), rounds=3, optimizer=KEPT)
    trained(strategy, decoder(tied=True), rounds=1, optimizer=KEPT, out=tmp_path / "run")
    resumed = trained(strategy, decoder(tied=True), rounds=3, optimizer=KEPT, out=tmp_path / "run", resume=True)
    assert_same_run(whole, resumed)


def test_devices_with_tied_weights_move():
    options = {"devices": 4, "edges": 2, "optimizer": KEPT}
    still = trained(FedFly(), decoder(tied=True), **options)
    moved = trained(FedFly(), decoder(tied=True), mobility=RandomMobility(p=1.0), **options)
    assert moved.metrics[0]["moves"] == 4
    assert_same_bits(still.model.state_dict(), moved.model.state_dict())


def test_a_tie_between_device_and_edge_is_refused_and_a_frozen_one_is_not():
    model = decoder(tied=True)
    for cut in ("first", ("letters", "third")):
        parts = fsl.split(model, cut) if cut != "first" else None
        assert parts is None or "head.weight" in parts["tail"].state_dict()
    with pytest.raises(SplitError, match=r"'letters\.weight' and 'head\.weight' are one tensor .* tie_word_embeddings"):
        fsl.split(model, "first")
    model.letters.weight.requires_grad_(False)
    one, other = (trained(strategy, model, cut="first") for strategy in (SplitFedV1(), FedAvg()))
    assert_same_bits(one.model.state_dict(), other.model.state_dict())
    assert one.model.head.weight is one.model.letters.weight


def test_privacy_refuses_tied_weights():
    with pytest.raises(ConfigError, match="privacy: front and tail share"):
        trained(FedAvg(), decoder(tied=True), privacy=Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)))


@models
def test_adapters_alone_are_trained_and_sent(build):
    model = build()
    found = trained(SplitFedV1(), model, devices=2)
    front = sum(p.nbytes for n, p in model.named_parameters() if p.requires_grad and not n.startswith("second"))
    assert found.metrics[0]["model_bytes"] == 2 * 2 * front
    after = found.model.state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, after[name])}
    assert has_adapters(model) == all(".lora_" in name for name in changed)
    if has_adapters(model):
        assert {name.partition(".")[0] for name in changed} == {"first", "second", "third"}


@pytest.mark.parametrize("strategy", each_time({name_of(s): s for s in STRATEGIES}, ["SplitFedV3-"]))
def test_adapters_over_the_wire_equal_those_in_one_process(strategy, tmp_path):
    """Nodes that begin with another base get the run's."""
    torch.manual_seed(9)
    options = {"devices": 4, "edges": 2, "optimizer": KEPT}
    other = Wired(folder=tmp_path, model=with_adapters(decoder(), fsl.Lora(r=2, targets=["query", "value"])))
    other.model.second.up.weight.data.add_(1.0)
    assert_same_result(trained(strategy, adapted(), **options), trained(strategy, adapted(), backend=other, **options))


def test_adapters_stopped_and_resumed(tmp_path):
    whole = trained(SplitFedV3(), adapted(), rounds=3, optimizer=KEPT)
    trained(SplitFedV3(), adapted(), rounds=1, optimizer=KEPT, out=tmp_path / "run")
    assert_same_run(
        whole, trained(SplitFedV3(), adapted(), rounds=3, optimizer=KEPT, out=tmp_path / "run", resume=True)
    )


@pytest.mark.shows
def test_a_tied_gpt2_learns_by_adapters_and_whole(tmp_path):
    """GPT-2's code with two blocks a segment: as the unsplit model to the bit, and well below its first loss."""
    transformers = pytest.importorskip("transformers")
    from pydoc_data.topics import topics

    config = transformers.GPT2Config(
        vocab_size=len(ALPHABET), n_positions=32, n_embd=32, n_layer=4, n_head=2, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    task = text_task("".join(topics.values()), 32, samples=600)
    train, test = (({"input_ids": rows}, rows) for rows in (task.train.targets, task.test.targets))
    data = fsl.data.as_task(train, test)
    options = {"cut": ("transformer.h.0", "transformer.h.2"), "devices": 3, "batch_size": 10, "objective": next_letter}
    options |= {"rounds": 8, "optimizer": fsl.Optimizer("torch.optim.AdamW", lr=5e-3)}
    split = run(SplitFedV1(), model, data=data, **options)
    whole = run(FedAvg(), model, data=data, **options)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    with torch.no_grad():
        first = float(next_letter(model.eval()(input_ids=task.test.targets).logits, task.test.targets))
    assert split.metrics[-1]["loss"] < first - 1.0
    tuned = run(SplitFedV1(), fsl.lora(split.model, r=4), data=data, **{**options, "rounds": 2})
    assert tuned.metrics[-1]["loss"] < split.metrics[-1]["loss"]
    assert tuned.metrics[0]["model_bytes"] < split.metrics[0]["model_bytes"] / 10
