"""Bottlenecks at the cut of runs: units of a model that stays frozen, rate after rate, and a bottleneck with int8."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

import fsl
from fsl.codecs import Bottleneck, Huffman, Units, only_units
from fsl.data import TaskData, TensorExamples
from fsl.models import ResNet8, bottlefit
from tests.helpers.small import small_model, small_task

RATES = [{"channels": 2, "stride": 2, "step": 0.25}, {"channels": 1, "stride": 1, "step": 0.25}]


def run(up, model=None, **options):
    options = {"cut": "conv", "devices": 2, "rounds": 2, "strategy": "splitfed_v1", "batch_size": 16} | options
    return fsl.simulate(small_model("batch") if model is None else model, small_task(), up=up, **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_units_are_trained_rate_after_rate_in_one_model_whose_other_weights_stay(tmp_path):
    base = small_model("batch").state_dict()
    first, second = tmp_path / "first", tmp_path / "second"
    run(Units(RATES, 0), only_units(small_model("batch")), out=first)
    run(Units(RATES, 1), only_units(small_model("batch")), out=second, init_from=first / "model.safetensors")
    kept = {name: tensor for name, tensor in weights(second).items() if "codec_" not in name}
    assert changed(kept, base) == set()
    assert kept.keys() == base.keys()
    found = changed(weights(first), weights(second))
    assert found
    assert all(name.startswith(("codec_encoder.units.1.", "codec_decoder.units.1.")) for name in found)


def test_units_that_are_not_at_work_do_not_travel():
    (one, both) = (run(Units(rates, 0), only_units(small_model())).metrics[-1] for rates in (RATES[:1], RATES))
    buffers = 2 * 2 * 4 * (3 * 2 * 4 + 2 * 1)  # at most: of BatchNorm, to and from two devices, some float32
    assert 0 <= both["model_bytes"] - one["model_bytes"] <= 8 * buffers


def test_codes_of_units_travel_as_bytes_and_shorter_by_a_table():
    plain, table = (run(Units(RATES, 0, frequencies)) for frequencies in (None, [200, 10, 5, 2, 1]))
    assert plain.metrics[-1]["accuracy"] == table.metrics[-1]["accuracy"]
    assert table.metrics[-1]["up_bytes"] < plain.metrics[-1]["up_bytes"] < run("identity").metrics[-1]["up_bytes"] / 4


@pytest.mark.parametrize("behind", [[], ["int8"], ["int8", Huffman([1] * 256)]], ids=["alone", "int8", "huffman"])
def test_a_bottleneck_learns_alone_and_with_codecs_behind_it(behind):
    options = {"rounds": 6, "optimizer": fsl.Optimizer("torch.optim.SGD", 0.1)}
    done = run([Bottleneck(channels=2, stride=2, noise=0.05), *behind], **options)
    assert done.metrics[-1]["accuracy"] > 0.6


def test_noise_of_the_channel_is_the_same_on_any_number_of_nodes():
    one, two = (run([Bottleneck(channels=2, noise=0.5), "int8"], nodes=nodes).metrics[-1] for nodes in (1, 2))
    assert (one["train_loss"], one["accuracy"]) == (two["train_loss"], two["accuracy"])


def test_the_second_stage_of_bottlefit_runs_as_a_federation_that_leaves_the_encoder():
    torch.manual_seed(0)
    student = bottlefit(ResNet8((1, 16, 16), 4), "block1", (1, 16, 16), channels=2, width=8)
    student.encoder.requires_grad_(False).eval()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    small = small_task()
    enlarged = TaskData(
        "enlarged",
        *(TensorExamples(interpolate(part.inputs, 16), part.targets) for part in (small.train, small.test)),
        small.classes,
    )
    done = fsl.simulate(student, enlarged, up="int8", devices=2, rounds=1, strategy="splitfed_v1", batch_size=16)
    found = changed(done.model.state_dict(), before)
    assert {name.split(".")[0] for name in found} == {"decoder", "block2", "block3", "head"}
