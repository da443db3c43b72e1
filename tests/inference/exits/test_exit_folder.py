"""A folder gives back the model with its exits as it was, and no other; all in it is checked before it is used."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fsl.data import digits_with_tones
from fsl.errors import CheckpointError, ConfigError
from fsl.inference.exits import (
    ChosenThresholds,
    ConvExit,
    ExitModel,
    ExitPredictor,
    ThresholdLines,
    Thresholds,
    load_exits,
    save_exits,
)
from fsl.inference.exits.exit_description import blank_input, described_input
from fsl.models import LeNet, PictureAndTone
from fsl.segments.tensor_trees import TensorTree
from tests.helpers.early_exits import rows_and_labels, small_backbone, small_exit_model

INPUTS = torch.randn(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
THRESHOLDS = Thresholds((0.15, math.inf), (0.3, 0.0))
LINES = ThresholdLines.through([ChosenThresholds(m, Thresholds((0.1 * m, 0.5)), 0, 0) for m in (1.0, 2.0)])


def exit_model() -> ExitModel:
    torch.manual_seed(0)
    model = ExitModel(LeNet((1, 16, 16), 10), {"pool1": ConvExit(5), "pool2": "sl_vit"}, INPUTS, confidence="entropy")
    model.put_predictors([ExitPredictor((6, 8, 8), 3), ExitPredictor((16, 2, 2), 3)])
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_text("{}\n")
    model = exit_model()
    assert save_exits(folder, model, thresholds=THRESHOLDS, lines=LINES) == folder / "exits"
    return folder, model


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_loaded_computes_what_was_saved(written):
    folder, model = written
    loaded = load_exits(folder)
    assert loaded.model.exits == model.exits
    assert loaded.model.specs == model.specs
    assert loaded.model.costs == model.costs
    assert loaded.lines == LINES
    assert loaded.thresholds == Thresholds((0.15, 2.0), (0.3, 0.0))
    for given in (THRESHOLDS, loaded.thresholds, 0.0):
        expected, found = model.infer(INPUTS, given), loaded.model.infer(INPUTS, given)
        assert torch.equal(found.outputs, expected.outputs)
        assert torch.equal(found.exits, expected.exits)
    assert (folder / "metrics.jsonl").exists()


def test_a_head_and_a_model_of_ones_own_are_given_again(tmp_path):
    inputs, _ = rows_and_labels()
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 4))
    model = ExitModel(small_backbone(), {"first": head, "second": "mlp"}, inputs).double()
    save_exits(tmp_path, model)
    with pytest.raises(ConfigError, match="with which arguments"):
        load_exits(tmp_path, allowed=["torch"])
    with pytest.raises(ConfigError, match="the head at 'first' is a module of the user's"):
        load_exits(tmp_path, backbone=small_backbone())
    other = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 4))
    loaded = load_exits(tmp_path, backbone=small_backbone(), heads={"first": other}).model
    assert torch.equal(loaded.infer(inputs.double(), 0.6).outputs, model.infer(inputs.double(), 0.6).outputs)


def test_inputs_by_name_are_known_again(tmp_path):
    batch = digits_with_tones().test.batch(torch.arange(4))[0]
    model = ExitModel(PictureAndTone(), {"stage1": "fusion"}, batch)
    save_exits(tmp_path, model)
    loaded = load_exits(tmp_path, backbone=PictureAndTone()).model
    assert torch.equal(loaded.infer(batch, 0.0).outputs, model.infer(batch, 0.0).outputs)


def test_a_blank_input_hides_nothing_by_its_masks():
    example = TensorTree.of({"ids": torch.tensor([[5, 6]] * 3), "mask": torch.ones(3, 2).bool(), "x": torch.rand(3, 1)})
    blank = blank_input(described_input(example)).values()
    assert blank["ids"].tolist() == [[1, 1]] * 3
    assert bool(blank["mask"].all())
    assert blank["x"].tolist() == [[0.0]] * 3


def test_nothing_of_the_example_is_written(tmp_path):
    torch.manual_seed(0)
    secret = torch.full((3, 6), 123.456)
    save_exits(tmp_path, ExitModel(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), {"0": "linear"}, secret))
    assert sorted(path.name for path in (tmp_path / "exits").iterdir()) == [
        "exits.json",
        "heads.safetensors",
        "model.safetensors",
    ]
    assert "123.4" not in (tmp_path / "exits" / "exits.json").read_text()
    tensors = [*load_file(tmp_path / "exits/heads.safetensors").values()]
    assert sum(tensor.numel() for tensor in tensors) == 4 * 4 + 4


def test_a_folder_is_replaced_only_where_that_is_asked(written):
    folder, model = written
    with pytest.raises(ConfigError, match="overwrite=True"):
        save_exits(folder, model)
    before = (folder / "exits" / "exits.json").read_text()
    save_exits(folder, model, thresholds=THRESHOLDS, lines=LINES, overwrite=True)
    assert (folder / "exits" / "exits.json").read_text() == before


def edited(change):
    def edit(folder):
        path = folder / "exits" / "exits.json"
        told = json.loads(path.read_text())
        change(told)
        path.write_text(json.dumps(told))

    return edit


def weights(name, change):
    def edit(folder):
        path = folder / "exits" / name
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def put(key, value):
    return lambda tensors: tensors.__setitem__(key, value)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda f: (f / "exits" / "exits.json").unlink(), "has no exits/exits.json"),
        (lambda f: (f / "exits" / "exits.json").write_text("{"), "is no description of exits"),
        (lambda f: (f / "exits" / "exits.json").write_text(" " * (1 << 20) + "{}"), "none that save_exits wrote is so"),
        (edited(lambda t: t.update(format=2)), "is of format 2, and this fsl reads 1"),
        (edited(lambda t: t.update(more=1)), "is no description of exits"),
        (edited(lambda t: t.pop("digest")), "is no description of exits"),
        (edited(lambda t: t["exits"][0]["head"].update(kind="cnn")), "exit head 'cnn': allowed are linear"),
        (edited(lambda t: t["exits"][0]["head"]["sizes"].update(width="5")), "is no description of exits"),
        (edited(lambda t: t["exits"][0]["head"]["sizes"].update(width=1 << 60)), "at 'pool1' cannot be made"),
        (edited(lambda t: t["exits"][0]["head"]["sizes"].update(depth=2)), "has no such sizes: width, depth"),
        (edited(lambda t: t["exits"][1]["predictor"].update(width=1 << 40)), "tensors of other shapes than exits.json"),
        (edited(lambda t: t["exits"][1].update(predictor=None)), "predictors for some exits and not for others"),
        (edited(lambda t: t["exits"].pop()), "has 1 exits and thresholds for"),
        (edited(lambda t: t["exits"].reverse()), "in another order|cannot be made|other shapes"),
        (edited(lambda t: t["input"]["tensors"][0].update(shape=[1 << 40])), "cannot be"),
        (edited(lambda t: t["input"]["tensors"][0].update(dtype="load")), "dtype 'load' cannot be"),
        (edited(lambda t: t["input"].update(structure='["class","os.system"]')), "cannot be read|only tensors, tuples"),
        (edited(lambda t: t.update(confidence="margin")), "confidence='margin'"),
        (edited(lambda t: t["thresholds"].update(eta=[2.0, 0.0])), "is no description of exits"),
        (edited(lambda t: t["backbone"].update({"class": "os.system"})), "a file alone makes no objects"),
        (
            weights("heads.safetensors", put("heads.0.0.weight", torch.zeros(5, 6, 2, 2))),
            "other shapes than exits.json",
        ),
        (weights("heads.safetensors", lambda t: t["heads.0.1.bias"].add_(math.nan)), "not finite"),
        (
            weights("model.safetensors", lambda t: t["conv1.0.bias"].add_(1.0)),
            "other numbers than those that were saved",
        ),
        (weights("heads.safetensors", lambda t: t["predictors.0.layers.4.bias"].add_(1.0)), "other numbers|differ"),
        (weights("model.safetensors", put("more", torch.zeros(1))), "does not fit LeNet: they differ in more"),
        (lambda f: (f / "exits" / "heads.safetensors").write_bytes(b"\x80\x04K\x01."), "no readable safetensors file"),
    ],
)
def test_a_folder_that_was_changed_is_refused_in_a_line(folder, spoil, line):
    spoil(folder)
    with pytest.raises((ConfigError, CheckpointError), match=line) as refused:
        load_exits(folder)
    assert "\n" not in str(refused.value)


def own_confidence():
    return ExitModel(small_backbone(), {"first": "linear"}, rows_and_labels()[0], confidence=lambda o: o[:, 0])


def own_predictors():
    model = small_exit_model()
    model.put_predictors([nn.Sequential(nn.Linear(8, 1), nn.Flatten(0), nn.Sigmoid()) for _ in model.exits])
    return model


def not_finite():
    model = small_exit_model()
    model.heads[0][1].bias.data[0] = math.nan
    return model


def of_two_precisions():
    model = small_exit_model()
    model.heads[0].half()
    return model


def otherwise_sized():
    model = small_exit_model()
    model.heads[0][1] = nn.Linear(8, 4, bias=False)
    return model


class NeedsSums(nn.Module):
    """Takes no rows of zeros, which are what a folder has of the example."""

    def forward(self, values):
        if not values.abs().sum() > 0:
            raise ValueError("rows of zeros")
        return values


def without_zeros():
    return ExitModel(nn.Sequential(NeedsSums(), *small_backbone()), {"1": "linear"}, rows_and_labels()[0])


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (not_finite, {}, r"'heads\.0\.1\.bias' holds values that are not finite"),
        (of_two_precisions, {}, "nothing is written, since it could not be loaded again"),
        (otherwise_sized, {}, "has tensors of other shapes than exits.json says"),
        (without_zeros, {}, "ValueError: rows of zeros"),
        (small_exit_model, {"lines": ThresholdLines((), ())}, "has 2 exits and thresholds for"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_written(make, options, line, tmp_path):
    save_exits(tmp_path, small_exit_model())
    before = {path.name: path.read_bytes() for path in (tmp_path / "exits").iterdir()}
    with pytest.raises(ConfigError, match=line) as refused:
        save_exits(tmp_path, make(), overwrite=True, **options)
    assert "\n" not in str(refused.value)
    assert ".new" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "exits").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["exits"]


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (own_confidence, "a function of your own cannot be saved"),
        (own_predictors, "the predictor at 'first' is a Sequential; save an ExitPredictor"),
    ],
)
def test_what_no_folder_can_name_is_refused(make, line, tmp_path):
    with pytest.raises(ConfigError, match=line):
        save_exits(tmp_path, make())
    assert list(tmp_path.iterdir()) == []
