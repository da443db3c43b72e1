"""A trained model as a folder: what loads it, with fsl and without, and what is refused."""

import json

import pytest
import torch
from fsl.strategies import SplitFedV1, SplitFedV3
from safetensors.torch import load_file
from torch import nn

import fsl
from fsl.errors import CheckpointError, ConfigError
from fsl.export import pretrained
from fsl.models import MLP
from tests.helpers.runs import assert_same_bits, run
from tests.helpers.small import small_model

SMALL = {"devices": 2, "rounds": 1, "progress": False}


@pytest.fixture(scope="module")
def one():
    """A run whose devices share one front, of a model whose arguments fsl knows."""
    torch.manual_seed(0)
    return run(SplitFedV1(), MLP((1, 8, 8), 4, hidden=[6, 5], dropout=0.1), cut="stage1", **SMALL)


@pytest.fixture(scope="module")
def private():
    return run(SplitFedV3(), small_model("batch"), **SMALL)


def test_a_saved_model_loads_without_fsl(one, tmp_path):
    assert one.save_pretrained(tmp_path / "saved") == tmp_path / "saved"
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["fsl_config.json", "model.safetensors"]
    plain = MLP((1, 8, 8), 4, hidden=[6, 5])
    plain.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    assert_same_bits(plain.state_dict(), one.model.state_dict())


def test_a_saved_model_of_fsls_needs_no_object(one, tmp_path):
    one.save_pretrained(tmp_path / "saved")
    loaded = fsl.load_pretrained(tmp_path / "saved")
    assert not loaded.training
    assert_same_bits(loaded.state_dict(), one.model.state_dict())
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(inputs), one.model.eval()(inputs))


def test_the_configuration_says_what_the_model_is(one, tmp_path):
    one.save_pretrained(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "fsl_config.json").read_text())
    made_with = {"input_shape": [1, 8, 8], "classes": 4, "hidden": [6, 5], "dropout": 0.1}
    assert said["model"] == {"class": "fsl.models.MLP", "arguments": made_with, "hugging_face": False}
    assert (said["cut"], said["classes"], said["seed"], said["rounds"]) == (["stage1"], 4, 0, 1)
    assert (said["fsl"], said["strategy"]) == (fsl.__version__, "fsl.strategies.splitfed.SplitFedV1")
    keys = {name: (part["place"], part["keys"][0]) for name, part in said["segments"].items()}
    assert keys == {"front": ("device", "stage1.1.weight"), "back": ("edge", "stage2.0.weight")}


@pytest.mark.parametrize("stage", ["head", "stage1"])
def test_a_model_that_somebody_changed_is_of_no_known_arguments(tmp_path, stage):
    model = MLP((1, 8, 8), 4, hidden=[6], dropout=0.1)
    if stage == "head":
        model.head = nn.Linear(6, 4, bias=False)
    else:
        model.stage1[-1].p = 0.5
    run(SplitFedV1(), model, cut="stage1", **SMALL).save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="does not say with which arguments"):
        fsl.load_pretrained(tmp_path / "saved")


def test_each_device_of_private_fronts_has_its_own_model(private, tmp_path):
    private.save_pretrained(tmp_path / "saved")
    names = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*.*")}
    assert names == {"fsl_config.json", "back.safetensors", "fronts/0.safetensors", "fronts/1.safetensors"}
    first, second = (
        fsl.load_pretrained(tmp_path / "saved", model=small_model("batch"), device=device) for device in (0, 1)
    )
    expected = {**private.states["back"], **private.front(1)}
    assert_same_bits(dict(second.state_dict()), {name: expected[name] for name in second.state_dict()})
    assert not torch.equal(first.conv[0].weight, second.conv[0].weight)
    with pytest.raises(ConfigError, match="a front for each of its devices; give one of 0, 1"):
        fsl.load_pretrained(tmp_path / "saved", model=small_model("batch"))


def test_one_device_is_picked_of_private_fronts(private, tmp_path):
    private.save_pretrained(tmp_path / "saved", device=1)
    loaded = fsl.load_pretrained(tmp_path / "saved", model=small_model("batch"))
    assert torch.equal(loaded.conv[0].weight, private.front(1)["conv.0.weight"])
    for device, line in ((0, "has the model of device 1; leave device out"),):
        with pytest.raises(ConfigError, match=line):
            fsl.load_pretrained(tmp_path / "saved", model=small_model("batch"), device=device)
    with pytest.raises(ConfigError, match="device=7: it has no front; give device=, one of 0, 1"):
        private.save_pretrained(tmp_path / "other", device=7)


def test_a_device_of_a_run_with_one_model_is_refused(one, tmp_path):
    with pytest.raises(ConfigError, match="device=1: this run has one model for all its devices; leave device out"):
        one.save_pretrained(tmp_path / "saved", device=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_overwritten_only_when_told_and_only_if_it_is_one_of_these(one, tmp_path):
    one.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="replace it with overwrite=True"):
        one.save_pretrained(tmp_path / "saved")
    one.save_pretrained(tmp_path / "saved", overwrite=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="has files of another kind"):
        one.save_pretrained(tmp_path / "home", overwrite=True)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_folder_is_written_whole_or_not_at_all(one, tmp_path, monkeypatch):
    one.save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    monkeypatch.setattr(pretrained, "write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(fsl.errors.RunError, match="cannot be written"):
        one.save_pretrained(tmp_path / "saved", overwrite=True)
    with pytest.raises(fsl.errors.RunError):
        one.save_pretrained(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before


class Wide(nn.Sequential):
    def __init__(self, width: int, depth: int = 1):
        hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 4))


def test_arguments_of_a_users_model_are_tried_and_its_package_must_be_trusted(tmp_path):
    found = run(SplitFedV1(), Wide(5), cut="2", **SMALL)
    with pytest.raises(ConfigError, match="Wide makes another model of them; give those"):
        found.save_pretrained(tmp_path / "saved", arguments={"width": 5, "depth": 2})
    with pytest.raises(ConfigError, match="Wide cannot be made with them"):
        found.save_pretrained(tmp_path / "saved", arguments={"breadth": 5})
    found.save_pretrained(tmp_path / "saved", arguments={"width": 5})
    with pytest.raises(ConfigError, match=r"trust its package \(allowed=\['tests'\]\)"):
        fsl.load_pretrained(tmp_path / "saved")
    loaded = fsl.load_pretrained(tmp_path / "saved", allowed=["tests"])
    assert_same_bits(loaded.state_dict(), found.model.state_dict())
    with pytest.raises(CheckpointError, match=r"does not fit Wide: they differ in 1\.bias"):
        fsl.load_pretrained(tmp_path / "saved", model=Wide(6))


@pytest.mark.parametrize(
    "path", ["os.system", "fsl.models.layers.inspect.getsource", "fsl.models.layers.conv_block", "torch.nn.Linear"]
)
def test_a_file_makes_no_objects_but_known_models(one, tmp_path, path):
    one.save_pretrained(tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "fsl_config.json").read_text())
    said["model"] |= {"class": path, "arguments": {}}
    (tmp_path / "saved" / "fsl_config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match="a file alone makes no objects but models of"):
        fsl.load_pretrained(tmp_path / "saved")


def test_what_is_no_saved_model_is_said_to_be_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no fsl_config.json: give a folder that run.save_pretrained"):
        fsl.load_pretrained(tmp_path)
    (tmp_path / "fsl_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is no configuration of a saved model"):
        fsl.load_pretrained(tmp_path)


@pytest.mark.slow
def test_a_model_of_hugging_face_loads_by_its_own_method(tmp_path):
    pytest.importorskip("transformers")
    from tests.helpers.hugging_face import Tiny, TinyConfig

    torch.manual_seed(0)
    for strategy, device in ((SplitFedV1(), None), (SplitFedV3(), 1)):
        found = run(strategy, Tiny(TinyConfig(width=5)), cut="first", **SMALL)
        found.save_pretrained(tmp_path / "saved", device=device, overwrite=True)
        alone = Tiny.from_pretrained(tmp_path / "saved")
        loaded = fsl.load_pretrained(tmp_path / "saved", allowed=["tests"])
        assert isinstance(loaded, Tiny)
        assert_same_bits(alone.state_dict(), loaded.state_dict())
        expected = found.states["back"] | (found.states["front"] if device is None else found.front(device))
        assert_same_bits(dict(alone.state_dict()), {name: expected[name] for name in alone.state_dict()})
    found.save_pretrained(tmp_path / "all")
    picked = fsl.load_pretrained(tmp_path / "all", device=1, allowed=["tests"])
    assert_same_bits(picked.state_dict(), alone.state_dict())
