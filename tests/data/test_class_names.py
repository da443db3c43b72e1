"""Class k is the same class on every node, and inputs are normalised alike, whatever a node's own data are."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

from fsl.data import TaskData, TensorExamples, as_task, from_dataset, images
from fsl.data.same_classes import by_name
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import Setup, build_workload
from fsl.errors import ConfigError, DataError
from tests.helpers.image_files import fill
from tests.helpers.node_setups import EDGE, setup_of

OWN = {"role": "device", "devices": "1", "rows": "all", "key": "k", "state": "s", "ca": "ca.pem"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")


def sent(tmp_path, names=("ant", "bee", "cat"), *overrides):
    """The setup of a cloud with images of these classes, as it arrives."""
    cloud = fill(tmp_path / "cloud", names)
    return Setup.from_json(setup_of("data=images", f"data.path={cloud}", "model=mlp", *overrides).to_json())


def workload(setup, folder, **config):
    return build_workload(setup, NodeSettings.read({**OWN, "data-path": str(folder), **config}))


def test_a_device_that_lacks_a_class_numbers_the_others_as_the_cloud_does(tmp_path):
    found = workload(sent(tmp_path), fill(tmp_path / "mine", ["cat", "ant"]))
    assert sorted(found.data.train.targets.unique().tolist()) == [0, 2]
    assert (found.data.classes, found.data.class_names) == (3, ("ant", "bee", "cat"))
    reference = images(str(tmp_path / "cloud"))
    for level in (0, 2):
        mine = found.data.train.inputs[found.data.train.targets == level]
        theirs = reference.train.inputs[reference.train.targets == level]
        assert set(mine[:, 0, 0, 0].tolist()) == set(theirs[:, 0, 0, 0].tolist())  # one pixel, one number


def test_a_device_with_one_class_takes_part(tmp_path):
    found = workload(sent(tmp_path), fill(tmp_path / "mine", ["bee"]))
    assert found.data.train.targets.unique().tolist() == [1]


def test_a_device_with_a_class_that_the_run_has_not_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none of the given ones: dog; the classes are ant, bee, cat: leave"):
        workload(sent(tmp_path), fill(tmp_path / "mine", ["bee", "cat", "dog"]))


def test_grey_images_of_a_device_are_read_as_the_run_s_are(tmp_path):
    assert workload(sent(tmp_path), fill(tmp_path / "mine", ["ant", "bee"], mode="L")).data.input_shape == (3, 4, 6)


@pytest.mark.slow
def test_class_names_count_where_an_objective_takes_labels_for_numbers(tmp_path):
    found = workload(sent(tmp_path, ("ant", "bee", "cat"), "objective=huber"), fill(tmp_path / "mine", ["cat"]))
    assert found.data.train.targets.unique().tolist() == [2]
    assert found.data.classes is None


def test_columns_of_parquet_files_go_by_name_too(tmp_path):
    def write(folder, labels, feature):
        folder.mkdir()
        features = datasets.Features(image=datasets.Image(), label=feature)
        pictures = [Image.fromarray(np.full((4, 4, 3), i * 9, dtype=np.uint8)) for i in range(len(labels))]
        for split in ("train", "test"):
            rows = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
            rows.to_parquet(folder / f"{split}.parquet")
        return folder

    cloud = write(tmp_path / "cloud", [0, 1, 2], datasets.ClassLabel(names=["a", "b", "c"]))
    setup = setup_of("data=images", f"data.path={cloud}", "model=mlp")
    declared = write(tmp_path / "declared", [1, 0], datasets.ClassLabel(names=["c", "b"]))
    texts = write(tmp_path / "texts", ["c", "a"], datasets.Value("string"))
    assert workload(setup, declared).data.train.targets.tolist() == [1, 2]
    assert workload(setup, texts).data.train.targets.tolist() == [2, 0]


def loader(path: str | None = None) -> TaskData:
    """A loader of a user's own, which names its classes and takes no others' names."""
    names = ("x", "y", "z") if path is None else ("z", "x") if path == "some" else ("z", "w")
    examples = TensorExamples(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    return TaskData("own", examples, examples, len(names), class_names=names)


def nameless(path: str | None = None) -> TaskData:
    """A loader of a user's own, which does not."""
    examples = TensorExamples(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))
    return TaskData("own", examples, examples, 2)


def test_data_of_a_user_s_own_go_by_the_names_that_they_say(caplog):
    setup = setup_of("data=custom", "data._target_=tests.data.test_class_names.loader", "model=mlp")
    assert workload(setup, "some", allow="tests").data.train.targets.tolist() == [2, 0, 2, 0]
    with pytest.raises(DataError, match="this node's data have rows of classes that the run has not: w; the run's are"):
        workload(setup, "other", allow="tests")
    assert "names no classes" not in caplog.text
    workload(
        setup_of("data=custom", "data._target_=tests.data.test_class_names.nameless", "model=mlp"), "x", allow="tests"
    )
    assert "nothing shows that class 0, 1, ... of this node's data are the run's" in caplog.text


def test_a_model_has_the_run_s_outputs_on_every_node(tmp_path):
    setup = sent(tmp_path)
    widths = {
        tuple(p.shape)
        for node in (workload(setup, fill(tmp_path / "mine", ["bee"])), build_workload(setup, NodeSettings.read(EDGE)))
        for p in list(node.model.parameters())[-1:]
    }
    assert widths == {(3,)}


class Named(Dataset):
    """As torchvision's ImageFolder."""

    def __init__(self, *classes):
        self.classes = list(classes)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(2), index % len(self.classes)


def test_training_and_test_sets_that_number_classes_differently_are_refused():
    abc, bcd = Named("ant", "bee", "cat"), Named("bee", "cat", "dog")
    with pytest.raises(DataError, match="training and test data number their classes differently: 0 is 'ant' in one"):
        as_task(abc, Subset(bcd, [0, 1]))
    with pytest.raises(DataError, match=r"training and test data: the second has classes that the first has not \(dog"):
        as_task(abc, Named("ant", "bee", "cat", "dog"))
    with pytest.raises(DataError, match="two datasets of a ConcatDataset number their classes differently"):
        as_task(ConcatDataset([abc, bcd]))
    assert as_task(Subset(abc, [0, 1, 2]), Named("ant", "bee")).class_names == ("ant", "bee", "cat")


def test_live_data_are_renumbered_row_by_row():
    examples = from_dataset(Named("b", "a"), materialize=False)
    mapped = by_name(TaskData("t", examples, None, 2, class_names=("b", "a")), ("a", "b", "c"), "they")
    assert mapped.train.targets.tolist() == [1, 0, 1, 0]
    assert mapped.train.subset(torch.tensor([1, 2])).batch(torch.tensor([0, 1]))[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"classes": ["ant"]}, r"data.classes=\['ant'\]: give the names of at least two classes"),
        ({"classes": ["ant", "ant"]}, "each once"),
        ({"mean": [1.0]}, r"data.mean=\[1.0\] and data.std=None belong together"),
        ({"mean": [1.0], "std": [2.0]}, r"mean=\[1.0\]: the images have 3 channels"),
        ({"mean": [1.0] * 3, "std": [0.0] * 3}, "std > 0"),
        ({"mean": [float("nan")] * 3, "std": [1.0] * 3}, "one finite number a channel"),
    ],
)
def test_names_and_constants_that_cannot_be_are_refused(tmp_path, options, line):
    with pytest.raises(ConfigError, match=line):
        images(str(fill(tmp_path / "some", ["ant", "bee"])), **options)


def test_constants_take_the_place_of_the_images_own(tmp_path):
    folder = str(fill(tmp_path / "some", ["ant", "bee"]))
    plain = images(folder)
    again = images(folder, mean=list(plain.scaling.mean), std=list(plain.scaling.std))
    assert torch.equal(plain.train.inputs, again.train.inputs)
    assert float(images(folder, mean=[20.0] * 3, std=[2.0] * 3).train.inputs.min()) == 0.0
