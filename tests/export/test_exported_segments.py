"""Segments as programs: they compute what the model does, and what cannot be exported is refused in a line."""

import hashlib
import json

import pytest
import torch
from fsl.strategies import SplitFedV1, SplitFedV3
from safetensors.torch import load_file
from torch import nn

from fsl.errors import ConfigError, RunError
from fsl.export import exported_segments, onnx_programs
from fsl.export.exported_segments import export_trained
from fsl.export.trained_model import Inputs, TrainedModel
from tests.helpers.crossing import reader, sentence_task
from tests.helpers.runs import assert_same_bits, run
from tests.helpers.small import small_model, small_task

SMALL = {"devices": 2, "rounds": 1, "progress": False}


@pytest.fixture(scope="module")
def trained():
    return run(SplitFedV1(), small_model("batch", dropout=0.3), **SMALL)


def of(model: nn.Module, cut: str, data=None) -> TrainedModel:
    """A model as it is, without a run."""
    examples = (data or small_task()).train
    return TrainedModel(
        module=model, cuts=(cut,), states={"whole": model.state_dict()}, devices=None, front_of=lambda device: {},
        inputs=lambda: Inputs.of(examples), facts={},
    )  # fmt: skip


def test_programs_in_a_row_compute_what_the_model_does(trained, tmp_path):
    trained.export(tmp_path / "out", formats="pt2")
    inputs = torch.randn(7, 1, 8, 8)
    front, back = (torch.export.load(tmp_path / "out" / f"{name}.pt2").module() for name in ("front", "back"))
    with torch.no_grad():
        assert torch.equal(back(*front(inputs))[0], trained.model.eval()(inputs))
        assert back(*front(inputs[:1]))[0].shape == (1, 4)


def test_the_manifest_says_what_enters_and_leaves_and_how_large_files_are(trained, tmp_path):
    said = trained.export(tmp_path / "out", formats=["pt2"])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == said
    front, back = said["segments"]
    image = {"name": "input", "dtype": "float32", "shape": ["batch", 1, 8, 8], "bytes": 256}
    smashed = {"name": "smashed", "dtype": "float32", "shape": ["batch", 4, 4, 4], "bytes": 256}
    assert (front["inputs"], front["outputs"], front["output_structure"]) == ([image], [smashed], "*")
    assert back["inputs"] == [smashed]
    assert back["outputs"] == [{"name": "outputs", "dtype": "float32", "shape": ["batch", 4], "bytes": 16}]
    for file in (front["programs"]["pt2"], said["whole"]):
        content = (tmp_path / "out" / file["file"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert said["chained"] == {"pt2": {"largest_error": 0.0, "relative_error": 0.0}}
    assert (said["cut"], said["classes"], said["checked_rows"]) == (["pool"], 4, [1, 5])
    assert_same_bits(load_file(tmp_path / "out" / "whole.safetensors"), dict(trained.model.state_dict()))


def test_programs_have_the_models_keys_and_none_of_its_data(tmp_path):
    secret = 1234.5678
    data = small_task()
    data.train.inputs[:] = secret
    said = export_trained(of(small_model(), "pool", data), tmp_path / "out", formats="pt2")
    program = torch.export.load(tmp_path / "out" / "front.pt2")
    assert list(program.state_dict) == ["conv.0.weight", "conv.0.bias"]
    assert not any(t.any() for t in program.example_inputs[0])
    assert all(secret not in part.unique() for part in program.state_dict.values())
    assert said["chained"]["pt2"]["largest_error"] == 0


def test_a_private_front_is_exported_by_its_device_and_no_other_cut(tmp_path):
    found = run(SplitFedV3(), **SMALL)
    with pytest.raises(ConfigError, match="each device has a front of its own; give device=, one of 0, 1"):
        found.export(tmp_path / "out", formats="pt2")
    with pytest.raises(ConfigError, match="only fit the back they were trained with, cut after pool; leave cut out"):
        found.export(tmp_path / "out", device=1, cut="conv")
    found.export(tmp_path / "out", device=1, formats="pt2")
    own = torch.export.load(tmp_path / "out" / "front.pt2").state_dict
    assert_same_bits({name: own[name] for name in found.front(1)}, found.front(1))


def test_two_cuts_and_other_cuts_than_the_runs(trained, tmp_path):
    said = trained.export(tmp_path / "out", cut=["conv", "conv2"], formats="pt2")
    assert [(part["name"], part["place"]) for part in said["segments"]] == [
        ("front", "device"), ("back", "edge"), ("tail", "device"),
    ]  # fmt: skip
    assert said["segments"][2]["inputs"][0]["name"] == "features"


@pytest.mark.slow
def test_several_tensors_cross_as_what_the_manifest_names(tmp_path):
    said = export_trained(of(reader(), "first", sentence_task()), tmp_path / "out", formats="pt2")
    front, back = said["segments"]
    assert [given["name"] for given in front["inputs"]] == ["input_ids", "attention_mask"]
    assert front["output_structure"] == back["input_structure"] == ["tuple", "*", "*", "*", "*"]
    assert [(one["name"], one["dtype"]) for one in back["inputs"]] == [
        ("smashed_0", "float32"), ("smashed_1", "float32"), ("smashed_2", "float32"), ("smashed_3", "int64"),
    ]  # fmt: skip


class Peeking(nn.Module):
    def forward(self, inputs):
        return inputs * 2 if float(inputs.sum()) > 0 else inputs


class Counting(nn.Module):
    def forward(self, inputs):
        return inputs + len(inputs) if inputs.shape[0] == 3 else inputs


def test_what_cannot_be_exported_is_refused_by_its_segment_and_the_reason(tmp_path):
    for place, segment in ((1, "front"), (3, "back")):
        layers = [nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4)]
        layers.insert(place, Peeking())
        model = nn.Sequential(*layers)
        with pytest.raises(ConfigError, match=f"^{segment} cannot be exported by torch.export: .*data-dependent"):
            export_trained(of(model, "2"), tmp_path / "out")
        with pytest.raises(ConfigError) as caught:
            export_trained(of(model, "2"), tmp_path / "out")
        assert "\n" not in str(caught.value)
    fixed = nn.Sequential(nn.Flatten(), Counting(), nn.Linear(64, 4), nn.ReLU())
    with pytest.raises(ConfigError, match=r"^front cannot be exported by torch.export: .*batch"):
        export_trained(of(fixed, "2"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    right = exported_segments.run_program
    monkeypatch.setattr(exported_segments, "run_program", lambda *given: tuple(t + 0.01 for t in right(*given)))
    with pytest.raises(RunError, match=r"front.pt2 computes something else than the module: off by 0.01"):
        export_trained(of(small_model(), "pool"), tmp_path / "out", formats="pt2")
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_the_manifest_says_so_and_asking_for_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_programs, "missing", lambda: ["onnxscript"])
    said = export_trained(of(small_model(), "pool"), tmp_path / "out")
    line = "onnxscript not installed; pip install 'fsl-flower[export]'"
    assert said["remarks"] == [f"no ONNX models: {line}"]
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".json", ".pt2", ".pt2", ".safetensors"]
    with pytest.raises(ConfigError, match="formats=onnx: onnxscript not installed"):
        export_trained(of(small_model(), "pool"), tmp_path / "other", formats="onnx")
    with pytest.raises(ConfigError, match="formats='tflite': allowed are pt2, onnx"):
        export_trained(of(small_model(), "pool"), tmp_path / "other", formats="tflite")


@pytest.mark.slow
def test_onnx_models_in_a_row_compute_what_the_model_does_with_any_number_of_rows(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    said = trained.export(tmp_path / "out", formats="onnx")
    assert 0 < said["chained"]["onnx"]["relative_error"] < 1e-5
    front, back = (onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx") for name in ("front", "back"))
    assert [(one.name, one.shape) for one in front.get_inputs()] == [("input", ["batch", 1, 8, 8])]
    assert [(one.name, one.shape) for one in back.get_outputs()] == [("outputs", ["batch", 4])]
    for rows in (1, 6):
        inputs = torch.randn(rows, 1, 8, 8)
        (smashed,) = front.run(None, {"input": inputs.numpy()})
        (outputs,) = back.run(["outputs"], {"smashed": smashed})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(outputs), trained.model.eval()(inputs))


def test_numbers_that_count_rows_cross_as_rows(tmp_path):
    said = export_trained(of(nn.Sequential(Sized(), Named()), "0"), tmp_path / "out", formats="pt2")
    assert said["segments"][0]["output_structure"] == ["tuple", "*", {"=": 3}]


class Sized(nn.Module):
    """Passes its rows and how many there are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, inputs):
        return self.layer(inputs.flatten(1)), inputs.shape[0]


class Named(nn.Module):
    def forward(self, given):
        rows, count = given
        return rows.view(count, 2, 2).flatten(1)


def test_codecs_and_noise_at_the_cut_are_said_to_be_missing(tmp_path):
    from fsl.run.summary import remarks_on

    assert remarks_on(False, "fsl.codecs.Identity") == ()
    noise, codec = remarks_on(True, "fsl.codecs.Int8")
    assert "without the clip and the noise of privacy.cut" in noise
    assert "in the run the codec Int8 changed them" in codec
