"""A pack that is damaged, or is none, is refused by its path."""

import pytest
import torch

from fsl import files
from fsl.errors import CheckpointError
from fsl.round.generation_pack import GenerationPack, write_pack
from fsl.round.node_store import Store
from fsl.round.pack_folder import PackName
from tests.helpers.packs import rows, save, state


@pytest.mark.parametrize("left", [0, 7, 60, -1])
def test_a_pack_that_is_cut_short_is_told_by_its_path(tmp_path, left):
    store = Store(tmp_path)
    save(store, 1, {0: state(0), 1: state(1)})
    path = tmp_path / "packs" / "1-0.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"packs/1-0\.safetensors"):
        Store(tmp_path).load("fronts/1", 1)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("devices", torch.tensor([1, 0]), "its devices are in no order"),
        ("devices", None, "'devices'"),
        ("states:w", torch.ones(3, 3), "'states:w' is of 3 devices, and there are 2"),
        ("starts", torch.tensor([0, 5]), "a device's start has no name"),
        ("starts", torch.tensor([0, -1]), "a device's start has no name"),
        ("ends:", torch.tensor([3, 1]), "the rows of layer '' are not as many"),
        ("ends:", torch.tensor([1, 5]), "the rows of layer '' are not as many"),
        ("gradients:", torch.ones(2, 2), "the rows of layer '' are not as many"),
        ("inputs:", None, "'inputs:'"),
    ],
)
def test_tensors_that_are_none_of_a_packs_are_refused(tmp_path, name, tensor, words):
    path = tmp_path / "1-0.safetensors"
    members = {0: state(0), 1: state(1)} if name in ("devices", "states:w") else {0: rows("a", 1), 1: rows("b", 2)}
    write_pack(path, members, durable=False)
    tensors, metadata = files.load_tensors(path), files.load_metadata(path)
    tensors |= {} if tensor is None else {name: tensor}
    files.save_tensors(path, {n: t for n, t in tensors.items() if tensor is not None or n != name}, metadata)
    with pytest.raises(CheckpointError, match=f"{path} is damaged .*{words}"):
        GenerationPack.open(path)


def test_other_files_in_the_folder_are_no_packs(tmp_path):
    store = Store(tmp_path)
    save(store, 1, {0: state(0)})
    for name in (".1-1.safetensors.tmp", "1-x.safetensors", "notes.txt", "1-1.safetensors.bak", "-1.safetensors"):
        (tmp_path / "packs" / name).write_text("")
    assert store.packs.names() == [PackName(1, 0)]


# Which of them go, and when.
