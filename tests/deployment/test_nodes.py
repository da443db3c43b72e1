"""A node's own configuration, and what it takes from the network."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from fsl.data import TaskData
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import Limit
from fsl.deployment.node.setup import Setup, build_workload, store_of
from fsl.errors import ConfigError, WireError
from fsl.wire.options import Patience
from tests.helpers.node_setups import DEVICE, EDGE, TOP, setup_of


def test_a_node_reads_its_configuration():
    settings = NodeSettings.read({**DEVICE, "edge-addresses": "0=a:1, 1=b:2", "straggler": 3, "partition-id": 0})
    assert settings.devices == (0, 2, 3)
    assert settings.edge_addresses == {0: "a:1", 1: "b:2"}
    assert settings.patience == {"straggler": 3.0}
    assert NodeSettings.read({**DEVICE, "max-epsilon": 3}).limit == Limit(3, "model")
    assert (settings.hosts_devices, settings.hosts_edge) == (True, False)
    assert NodeSettings.read({**EDGE, "steps": "grpc"}).steps == "grpc"  # of its lines to a server above it
    above = NodeSettings.read(TOP)
    assert (above.hosts_devices, above.hosts_edge, above.hosts_top, above.edge) == (False, False, True, 1)
    assert NodeSettings.read({"partition-id": 3, "num-partitions": 10}).role == "any"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"role": "phone"}, r"role='phone': allowed are any, device, edge, both, top"),
        ({"roel": "device"}, r"there is no key 'roel'. There are: role, devices"),
        ({**DEVICE, "devices": "0,x"}, r"devices='0,x': give ids as in '3', '0,2' or '0-9'"),
        ({**DEVICE, "devices": "1,0-2"}, r"names a device twice"),
        ({**DEVICE, "devices": ""}, r"role='device' needs devices"),
        ({**DEVICE, "key": ""}, r"role='device' needs key"),
        ({**DEVICE, "state": ""}, r"role='device' needs state"),
        ({**DEVICE, "rows": "some"}, r"rows='some': allowed are partition, all"),
        ({**DEVICE, "rows": "all"}, r"rows='all' is one device's own data"),
        ({**DEVICE, "straggler": 0}, r"straggler=0.0: it is a number of seconds above 0"),
        ({**DEVICE, "straggler": True}, r"straggler=True is of the wrong type"),
        ({**DEVICE, "max-epsilon": 0}, r"max-epsilon=0: it is a number above 0"),
        (
            {**DEVICE, "max-epsilon": 3, "max-epsilon-against": "me"},
            r"max-epsilon-against='me': allowed are model, devices",
        ),
        ({**EDGE, "max-epsilon": 3}, r"max-epsilon is of a node with devices; this one has role='edge'"),
        ({**EDGE, "devices": "0-3"}, r"devices='0-3' is of a node that hosts devices; this one has role='edge'"),
        (
            {**DEVICE, "listen": "host:1"},
            r"listen='host:1' is of a node that hosts an edge, or the server above one; this one has role='device'",
        ),
        ({"devices": "0-3"}, r"devices='0-3' is of a node that hosts devices; this one has role='any'"),
        ({**EDGE, "cert": "edge.pem"}, r"insecure=true with cert='edge.pem': nothing would be encrypted"),
        ({**DEVICE, "max-epsilon-against": "edge"}, r"max-epsilon-against without max-epsilon limits nothing"),
        ({**DEVICE, "edge-addresses": "here"}, r"edge-addresses='here': give it as in"),
        ({**EDGE, "listen": ""}, r"role='edge' needs listen"),
        ({**TOP, "listen": ""}, r"role='top' needs listen"),
        ({**TOP, "edge": -1}, r"edge=-1: an edge's id is a number from 0 on"),
        ({**TOP, "devices": "0"}, r"devices='0' is of a node that hosts devices; this one has role='top'"),
        ({**TOP, "steps": "tcp"}, r"steps='tcp' is of a node that hosts devices or an edge; this one has role='top'"),
        ({**TOP, "insecure": False}, r"an edge needs cert and cert-key"),
        ({**EDGE, "edge": -1}, r"edge=-1: an edge's id is a number from 0 on"),
        ({**EDGE, "edge": "0"}, r"edge='0' is of the wrong type"),
        ({**EDGE, "insecure": False}, r"an edge needs cert and cert-key .* fsl-certs makes them"),
        ({**EDGE, "insecure": False, "cert": "no.pem", "cert-key": "no.key"}, r"cert-key=no.key: it cannot be read"),
    ],
)
def test_a_wrong_value_is_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        NodeSettings.read(config)


def test_a_node_places_segments_where_the_run_does():
    setup = setup_of("model=lenet", "model.cut=[pool1,fc2]", "model.places=[device,edge,cloud]")
    for config in (TOP, EDGE, {}):
        workload = build_workload(Setup.from_json(setup.to_json()), NodeSettings.read(config))
        assert workload.places == ("device", "edge", "cloud")


def test_a_setup_survives_its_way():
    setup = setup_of("strategy=sglr", "devices=3")
    assert Setup.from_json(setup.to_json()) == setup
    assert setup.run != setup_of("strategy=sglr", "devices=3", folder="elsewhere").run


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"run": "../up"}, {"groups": {}}, {"inputs": []}, {"more": 1}])
def test_what_is_no_setup_is_refused(change):
    raw = json.loads(setup_of().to_json()) | change
    with pytest.raises(WireError, match="this is no run's setup"):
        Setup.from_json(json.dumps(raw))


def test_where_data_lie_does_not_travel():
    setup = setup_of("data=digits")
    sent = replace(setup, groups=setup.groups | {"data": {"_target_": "fsl.data.images", "path": "/", "name": "x"}})
    with pytest.raises(ConfigError, match=r"data.path .* or data.name .* must be given"):
        build_workload(sent, NodeSettings.read({}))
    assert not {"path", "name"} & set(
        setup_of("+data.name=x", "data._target_=tests.deployment.test_nodes.named").groups["data"]
    )


def named(name: str, test_share: float = 0.2) -> TaskData:
    """Data that take a name."""
    from fsl.data import digits

    return digits(test_share)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "subprocess.Popen"),
        ("model", "torch.load"),
        ("model", "fslevil.Model"),
        ("model", "fsl.files.write_text"),
        ("strategy", "fsl.run.simulate.simulate"),
        ("partition", "os.system"),
        ("data", "fsl.files.load_tensors"),
        ("data", "tests.deployment.test_nodes.named"),
        ("strategy", "fsl.importing.import_paths.resolve_name"),
        ("data", 7),
    ],
)
def test_a_node_takes_classes_only_from_packages_that_it_allows(group, target):
    setup = setup_of()
    sent = replace(setup, groups=setup.groups | {group: {"_target_": target}})
    with pytest.raises(WireError, match=rf"the run's {group} names .* but this node takes classes only from: fsl, "):
        build_workload(sent, NodeSettings.read({}))


def test_a_class_that_hides_deeper_is_found():
    setup = setup_of()
    sent = replace(setup, groups=setup.groups | {"data": setup.groups["data"] | {"augment": {"_target_": "os.system"}}})
    with pytest.raises(WireError, match=r"names 'os\.system'"):
        build_workload(sent, NodeSettings.read({}))


def test_a_node_may_allow_more():
    setup = setup_of()
    sent = replace(setup, groups=setup.groups | {"data": {"_target_": "tests.deployment.test_nodes.named"}})
    settings = NodeSettings.read({"allow": "tests", "data-name": "mine"})
    assert build_workload(sent, settings).data.name == "digits"


def test_an_edge_needs_no_data():
    setup = setup_of("strategy=decoupled")
    workload = build_workload(setup, NodeSettings.read(EDGE))
    assert len(workload.data.train) == 0
    assert [tuple(workload.data.input_shape)] == [one.shape for one in setup.inputs]
    assert workload.head is None


def test_nodes_train_by_the_runs_objective():
    setup = setup_of("objective=huber", "objective.delta=0.3", "model=mlp")
    for config in (EDGE, DEVICE):
        workload = build_workload(setup, NodeSettings.read(config))
        assert (type(workload.objective).__name__, workload.objective.delta) == ("Huber", 0.3)
        assert workload.data.classes is None
        assert workload.data.train.targets.dtype == torch.int64


@pytest.mark.slow
def test_an_edge_without_data_knows_that_targets_are_ignored():
    sent = replace(setup_of(), groups={**setup_of().groups})
    sent.groups["objective"]["ignores"] = True
    assert build_workload(sent, NodeSettings.read(EDGE)).objective.ignores


def test_other_targets_than_the_run_s_are_refused():
    setup = replace(setup_of(), target_shape=(3,))
    with pytest.raises(
        ConfigError, match=r"this node's targets are int64 of shape \(\), the run's int64 of shape \(3,\)"
    ):
        build_workload(setup, NodeSettings.read(DEVICE))


def test_a_device_takes_its_partition_or_all_of_its_own_data():
    setup = setup_of("devices=4")
    shared = build_workload(setup, NodeSettings.read(DEVICE))
    own = build_workload(setup, NodeSettings.read({**DEVICE, "devices": "1", "rows": "all"}))
    assert 4 * shared.partition.size(1) <= own.partition.size(1) + 4
    assert torch.equal(own.partition.indices(1), torch.arange(len(own.data.train)))


def test_other_data_than_the_run_s_are_refused():
    setup = replace(setup_of(), classes=3)
    with pytest.raises(ConfigError, match=r"this node's data are .* of 10 classes, the run's .* of 3"):
        build_workload(setup, NodeSettings.read(DEVICE))


def test_runs_do_not_share_what_devices_keep(tmp_path):
    settings = NodeSettings.read({**DEVICE, "state": str(tmp_path)})
    one, other = (store_of(setup_of(folder=name), settings) for name in ("one", "other"))
    assert one != other
    assert one.parent == other.parent == tmp_path / "runs"


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 1}, {"devices": 3}, {"samples_per_device": 9}])
def test_a_run_of_the_same_name_that_deals_out_other_rows_begins_anew(change, tmp_path):
    """Else one draw of randomized labels would serve two samples, and one account two data sets."""
    settings, setup = NodeSettings.read({**DEVICE, "state": str(tmp_path)}), setup_of()
    assert store_of(setup, settings) == store_of(Setup.from_json(setup.to_json()), settings)
    assert store_of(setup, settings) == store_of(replace(setup, patience={"join": 1.0}), settings)
    assert store_of(setup, settings) != store_of(replace(setup, **change), settings)
    other = setup.groups | {"partition": {"_target_": "fsl.data.Dirichlet", "alpha": 1.0}}
    assert store_of(setup, settings) != store_of(replace(setup, groups=other), settings)


def test_a_run_s_patience_is_a_node_s_unless_it_has_its_own():
    setup = setup_of("deployment.straggler=7")
    assert Patience(**setup.patience).straggler == asdict(Patience())["straggler"]  # given beside the configuration
    assert replace(Patience(), **NodeSettings.read({**DEVICE, "straggler": 2}).patience).straggler == 2
