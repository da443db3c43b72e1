"""Tables and texts of a federation: every node prepares its own as the cloud's data say, or is refused."""

import pytest
import torch

from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import Setup, build_workload
from fsl.deployment.node.setup_names import check_group
from fsl.errors import ConfigError, DataError, WireError
from fsl.importing.import_paths import ALLOWED
from tests.helpers.node_setups import EDGE, setup_of
from tests.helpers.small_texts import TINY, save_texts, save_tokenizer

OWN = {"role": "device", "devices": "1", "rows": "all", "key": "k", "state": "s", "ca": "ca.pem"}
CLOUD = "age,job,income\n10,a,low\n20,b,high\n30,c,low\n40,a,high\n"
MINE = "job,income,age\nb,high,70\nc,high,30\n"


def tables(folder, text):
    folder.mkdir()
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text(text)
    return folder


def workload(setup, folder, **config):
    return build_workload(setup, NodeSettings.read({**OWN, "data-path": str(folder), **config}))


@pytest.fixture
def setup(tmp_path):
    cloud = tables(tmp_path / "cloud", CLOUD)
    said = setup_of("data=table", f"data.path={cloud}", "data.target=income", "model=mlp").to_json()
    assert str(cloud) not in said
    return Setup.from_json(said)


def test_a_node_prepares_its_table_by_the_clouds_statistics_categories_and_classes(setup, tmp_path):
    train = workload(setup, tables(tmp_path / "mine", MINE)).data.train
    deviation = 125**0.5  # of the cloud's ages, whose mean is 25
    assert train.inputs[:, 1:].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert torch.allclose(train.inputs[:, 0], torch.tensor([45 / deviation, 5 / deviation]))
    assert train.targets.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (MINE.replace("job", "work"), "has no such column"),
        (MINE.replace("high", "medium"), "classes that are none of the run's: medium"),
        (MINE.replace("70", "old"), "column 'age' of .* is one of numbers, and has 'old'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(setup, tmp_path, text, line):
    with pytest.raises(DataError, match=line):
        workload(setup, tables(tmp_path / "mine", text))


def test_a_regressions_nodes_have_numbers_too(tmp_path):
    cloud = tables(tmp_path / "cloud", CLOUD)
    setup = setup_of(
        "data=table", f"data.path={cloud}", "data.target=age", "data.task=regression", "model=mlp", "objective=mse"
    )
    train = workload(Setup.from_json(setup.to_json()), tables(tmp_path / "mine", MINE)).data.train
    assert train.targets.tolist() == [[70.0], [30.0]]


def test_a_test_file_beside_is_of_simulations_alone(tmp_path):
    cloud = tables(tmp_path / "cloud", CLOUD)
    with pytest.raises(ConfigError, match=r"data\.test_path=.*nodes have training and test files in one folder"):
        setup_of("data=table", f"data.path={cloud}/train.csv", f"data.test_path={cloud}/test.csv", "data.target=income")


@pytest.mark.slow
def test_nodes_use_tokenizers_of_their_own_and_build_the_model_by_its_configuration(tmp_path):
    pytest.importorskip("transformers")
    from fsl.models import huggingface

    texts = save_texts(tmp_path / "texts", 8, "test.jsonl")
    save_texts(texts, 12)
    huggingface(config=TINY, classes=2).save_pretrained(save_tokenizer(tmp_path / "model"))
    options = ["data=text", f"data.path={texts}", "data.padding=batch"]
    said = setup_of(*options, "model=huggingface", f"model.pretrained={tmp_path}/model").to_json()
    assert str(tmp_path) not in said
    setup = Setup.from_json(said)
    own = {"data-tokenizer": str(save_tokenizer(tmp_path / "tokenizer"))}
    found = workload(setup, texts, **own)
    assert found.data.recipe == setup.recipe
    assert type(found.model).__name__ == "BertForSequenceClassification"
    assert found.model.config.hidden_size == 16
    edge = build_workload(setup, NodeSettings.read(EDGE))
    assert edge.data.blank(2).names == ["input_ids", "attention_mask"]
    assert edge.data.train.trimmed
    with pytest.raises(DataError, match=r"data\.tokenizer must be given"):
        workload(setup, texts)
    with pytest.raises(DataError, match="prepared in another way than the run's"):
        workload(setup, texts, **{"data-tokenizer": str(save_tokenizer(tmp_path / "other", ["good"]))})


@pytest.mark.slow
def test_nodes_cut_a_model_inside_of_a_block_as_the_run_does(tmp_path):
    pytest.importorskip("transformers")
    from fsl.models import huggingface

    texts = save_texts(tmp_path / "texts", 12)
    tokenizer = save_tokenizer(tmp_path / "model")
    huggingface(config=TINY, classes=2).save_pretrained(tokenizer)
    options = ["data=text", f"data.path={texts}", "model=huggingface", f"model.pretrained={tokenizer}"]
    setup = Setup.from_json(setup_of(*options, "low_rank=sft", "low_rank.r=3", "low_rank.block=1").to_json())
    edge = build_workload(setup, NodeSettings.read(EDGE))
    for found in (workload(setup, texts, **{"data-tokenizer": str(tokenizer)}), edge):
        assert found.model.default_cut == "bert.encoder.layer.1.intermediate.dense.reduce"
        assert found.model.get_submodule(found.model.default_cut).weight.shape == (3, 16)


def test_nodes_make_a_front_lean_as_the_run_does_and_build_no_class_that_it_names():
    setup = Setup.from_json(setup_of("model=vgg5", "lean_front=pruned", "lean_front.share=0.25").to_json())
    assert build_workload(setup, NodeSettings.read(EDGE)).model.conv2[0].out_channels == 48
    pruned = {"_target_": "fsl.models.VGG5", "lean_front": {"kind": "pruned", "_target_": "os.system"}}
    with pytest.raises(WireError, match="a node builds nothing that options name"):
        check_group("model", pruned, ALLOWED)


def test_the_network_names_no_place_to_load_a_model_from():
    check_group("model", {"_target_": "fsl.models.huggingface", "config": TINY}, ALLOWED)
    with pytest.raises(WireError, match="the run's model names a place to load it from"):
        check_group("model", {"_target_": "fsl.models.huggingface", "pretrained": "someone/model"}, ALLOWED)
