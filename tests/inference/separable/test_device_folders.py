"""A device's folder has its own channels alone, gives its part back, and is refused where it is damaged."""

import json

import pytest
import torch

from fsl.errors import CheckpointError, ConfigError
from fsl.files import load_tensors, save_tensors
from fsl.inference.separable import load_device, save_devices, separable
from fsl.inference.separable.separable_model import run_grouped
from tests.helpers.separated import SHAPE, divided, images, small_convs


def test_the_folders_give_back_what_the_network_computes(tmp_path):
    model = divided()
    paths = save_devices(tmp_path / "devices", model)
    parts = [load_device(path) for path in paths]
    assert [part.group.device for part in parts] == [0, 1, 2, 3]
    assert {part.digest for part in parts} == {model.digest()}
    assert torch.equal(run_grouped([part.group for part in parts], images()), model.grouped(images()))


def test_a_device_holds_the_weights_of_its_own_channels_and_links_alone(tmp_path):
    """Without links four devices hold as many values as the grouped network; the dense one has more."""
    model = divided(4, "none")
    paths = save_devices(tmp_path / "devices", model)
    kept = [load_tensors(path / "weights.safetensors") for path in paths]
    assert all(one["block1.body.0.weight"].shape == (4, 4, 3, 3) for one in kept)
    dense = model.network.get_submodule("block1.body.0").weight
    assert torch.equal(kept[2]["block1.body.0.weight"], dense[8:12, 8:12])
    assert [("head.2.bias" in one) for one in kept] == [True, False, False, False]


def test_a_network_of_another_class_comes_back_by_an_object_of_it(tmp_path):
    model = separable(small_convs(), devices=2, input_shape=SHAPE)
    path, other = save_devices(tmp_path / "devices", model)
    with pytest.raises(ConfigError, match="a file alone makes no objects"):
        load_device(path)
    parts = [load_device(one, network=small_convs()).group for one in (path, other)]
    assert torch.equal(run_grouped(parts, images()), model.grouped(images()))


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has files of another kind"):
        save_devices(tmp_path, divided(), overwrite=True)
    save_devices(tmp_path / "new", divided())
    with pytest.raises(ConfigError, match="choose another folder"):
        save_devices(tmp_path / "new", divided())


def spoil_json(path, name, value):
    told = json.loads((path / "device.json").read_text())
    told[name] = value
    (path / "device.json").write_text(json.dumps(told))


def swap_a_sender(path):
    """Device 1 would take device 2's maps for device 3's: its weights have the same shapes."""
    gates = json.loads((path / "device.json").read_text())["gates"]
    block = next(block for block in gates if block[2][1] != block[3][1])
    block[2][1], block[3][1] = block[3][1], block[2][1]
    spoil_json(path, "gates", gates)


def spoil_weights(path, change):
    tensors = load_tensors(path / "weights.safetensors")
    change(tensors)
    save_tensors(path / "weights.safetensors", tensors)


CHANGED = "has other weights or gates than those that were saved"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: spoil_json(p, "format", 9), "is of format 9, and this fsl reads 1"),
        (lambda p: spoil_json(p, "device", 7), "its gates or its device do not fit its network"),
        (lambda p: spoil_json(p, "device", 2), "has other tensors than its device"),
        (lambda p: spoil_json(p, "gates", [[[True] * 4] * 4] * 5), "its gates or its device do not fit"),
        (lambda p: spoil_json(p, "gates", [[[False] * 4] * 4] * 6), "a device always has its own maps"),
        (swap_a_sender, CHANGED),
        (lambda p: spoil_json(p, "digest", "x"), "has a dtype or a digest that cannot be"),
        (lambda p: spoil_json(p, "more", 1), "describes no device"),
        (lambda p: (p / "device.json").unlink(), "has no device.json"),
        (lambda p: (p / "weights.safetensors").write_bytes(b"junk"), "is no readable safetensors file"),
        (
            lambda p: spoil_weights(p, lambda t: t["stem.0.weight"].add_(1)),
            CHANGED,
        ),
        (lambda p: spoil_weights(p, lambda t: t["stem.0.weight"].fill_(torch.nan)), "values that are not finite"),
        (lambda p: spoil_weights(p, lambda t: t.pop("stem.0.weight")), "as 'stem.0.weight'"),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path, spoil, said):
    path = save_devices(tmp_path / "devices", divided())[1]
    spoil(path)
    with pytest.raises((CheckpointError, ConfigError)) as error:
        load_device(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
