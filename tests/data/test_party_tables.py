"""What each node of a real federation reads of its own party's file, and nobody else's."""

import pytest
import torch
from fsl.simulations.fsl_simulate import command
from fsl.strategies import FedAvg

from fsl.data import party_csv, vertical_csv
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import build_workload
from fsl.errors import ConfigError, DataError
from fsl.models import VerticalMLP
from tests.helpers.node_setups import DEVICE, EDGE, setup_of
from tests.helpers.parties import party_files, run
from tests.helpers.wired import Wired

COLUMNS = {"bank": ["age", "income"], "shop": ["visits"]}
ASKED = {"columns": COLUMNS, "id": "id", "label": "bought", "labels_at": "edge", "classes": ["no", "yes"]}


def test_each_reads_what_all_together_would(tmp_path):
    paths = party_files(tmp_path)
    whole = vertical_csv(paths, "id", "bought", "edge")
    people = set()
    for party in ("bank", "shop", "edge"):
        own = party_csv(**ASKED, party=party, path=paths[party])
        people.add(own.people)
        assert (own.class_names, own.classes, own.held) == (("no", "yes"), 2, party)
        for mine, every in ((own.train, whole.train), (own.test, whole.test)):
            assert torch.equal(mine.targets, every.targets * (party == "edge"))
            for name in COLUMNS:
                assert torch.equal(mine.inputs[name], every.inputs[name] * (name == party))
    assert len(people) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"columns": {}}, r"data\.columns: name each party's columns"),
        ({"columns": {"bank": "age"}}, r"data\.columns={'bank': 'age'}: give a mapping from texts to lists of texts"),
        ({"columns": {"bank": [3]}}, r"data\.columns={'bank': \[3\]}: give a mapping from texts to lists of texts"),
        ({"columns": {"bank": ["age", "age"]}}, r"data\.columns\.bank: 'age' is there twice"),
        ({"columns": {"bank": ["age", "bought"]}}, r"data\.columns\.bank: 'bought' is the column of labels"),
        ({"columns": {"bank": ["age"], "edge": ["x"]}}, "'edge' names who runs the back"),
        ({"columns": {1: ["age"]}}, "give a mapping from texts to lists of texts"),
        ({"labels_at": "hotel"}, r"data\.labels_at='hotel': it is edge or one of the parties bank, shop"),
        *(
            ({"classes": classes}, r"data\.classes=.*: it is a number from 2 on, or a list of 2 names or more")
            for classes in (0, 1, [], ["yes"], ["no", "yes", "yes"])
        ),
        *(
            ({"classes": classes}, r"data\.classes=.*: give a whole number or a list of texts or None")
            for classes in (True, 2.0, "yes", {"no": 0, "yes": 1})
        ),
        *(
            ({"test_share": share}, r"data\.test_share=.*: it is a number between 0 and 1")
            for share in (0, 1.0, float("nan"))
        ),
        *(({"test_share": share}, r"data\.test_share=.*: give a number") for share in ("half", None)),
    ],
)
def test_the_cloud_refuses_what_no_node_could_read(options, line):
    with pytest.raises((DataError, ConfigError), match=line):
        party_csv(**(ASKED | options))


@pytest.mark.parametrize(
    ("options", "more", "line"),
    [
        ({"party": "bank"}, {}, "party 'bank' has no file of its rows; give its node data-path"),
        ({"party": "edge"}, {}, "the edge has no file of its labels; give its node data-path"),
        ({"path": "bank"}, {}, "whose file it is is not said"),
        ({"party": "bank", "path": "shop"}, {}, "has no column 'age'; it has visits, id"),
        ({"party": "bank", "path": "bank"}, {"bank": "id,age,income\n1,3,2\n1,2,1\n"}, "has id '1' 2 times"),
        ({"party": "bank", "path": "bank"}, {"bank": "id,age,income\n1,3,\n2,2,1\n"}, "has empty cells"),
        ({"party": "bank", "path": "bank"}, {"bank": "id,age,income\n1,x,2\n2,2,1\n"}, "holds texts"),
        ({"party": "bank", "path": "bank"}, {"bank": "id,age,income\n1,7,3,2\n2,8,2,1\n"}, "Length of header or names"),
        ({"party": "edge", "path": "edge"}, {"edge": "id,bought\n1,no\n2,maybe\n"}, "has the label 'maybe'"),
        ({"party": "edge", "path": "edge", "classes": 2}, {"edge": "id,bought\n1,0\n2,2\n"}, "no whole numbers 0 to 1"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(options, more, line, tmp_path):
    paths = party_files(tmp_path, **more)
    options = {name: paths[value] if name == "path" else value for name, value in options.items()}
    with pytest.raises(DataError, match=line):
        party_csv(**(ASKED | options))


# On nodes.

RUN = (
    "strategy=vertical",
    "model=vertical_mlp",
    "devices=2",
    "edges=1",
    "data=party",
    "data.columns={bank: [age, income], shop: [visits]}",
    "data.label=bought",
    "data.labels_at=edge",
    "data.classes=[no, yes]",
)


def built(tmp_path, **config):
    return build_workload(setup_of(*RUN), NodeSettings.read({**config, "key": "k", "state": str(tmp_path)}))


@pytest.mark.parametrize(("devices", "party"), [("0", "bank"), ("1", "shop")])
def test_a_node_reads_its_own_party_s_file(devices, party, tmp_path):
    paths = party_files(tmp_path)
    data = built(tmp_path, **DEVICE | {"devices": devices, "data-path": paths[party], "ca": ""}).data
    assert (data.held, len(data.train)) == (party, 3)
    assert not data.train.targets.any()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (DEVICE | {"devices": "0,1"}, "a party has a node of its own"),
        (DEVICE | {"devices": "2"}, "a party has a node of its own"),
        (DEVICE | {"devices": "0", "data-path": "shop"}, "has no column 'age'"),
        (DEVICE | {"devices": "0"}, "party 'bank' has no file of its rows"),
        (EDGE | {"edge": 0}, "the edge has no file of its labels"),
        (
            {"role": "any"},
            "this node has no role, .*, and its data are what edge alone holds",
        ),
    ],
)
def test_a_node_with_another_s_configuration_takes_no_part(config, line, tmp_path):
    paths = party_files(tmp_path)
    config = {name: paths.get(value, value) if name == "data-path" else value for name, value in config.items()}
    with pytest.raises((ConfigError, DataError), match=line):
        built(tmp_path, **config)


@pytest.mark.parametrize("strategy", [["strategy=vertical"], ["strategy=fedavg", "devices=1"]])
def test_a_simulation_trains_on_no_blank_rows(strategy, tmp_path, capsys):
    assert command([*RUN, *strategy, f"hydra.run.dir={tmp_path}"]) == 2
    assert "the data are what edge alone holds; a simulation plays all parties" in capsys.readouterr().err


@pytest.mark.slow
def test_only_vertical_trains_on_what_parties_hold_alone(tmp_path):
    """Over the wire, too: others would train the whole model on one party's columns, and zeros."""
    data = party_csv(**ASKED)
    wired = Wired(folder=tmp_path, edges=1, device_nodes=1)
    with pytest.raises(ConfigError, match="strategy=FedAvg: the data are what edge alone holds"):
        run(FedAvg(), VerticalMLP(data.party_shapes, 2), data, devices=1, backend=wired)
