"""Whose number is whose: any enrolled node may say that it is device 0, and only one key is."""

import logging

import pytest
from fsl.simulations.fsl_certs import command

from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.deployment.cloud.enrolled import TABLE, add_nodes, fingerprint_of, read_table
from fsl.deployment.cloud.members import Members
from fsl.deployment.cloud.terms import Terms
from fsl.errors import ConfigError, RunError
from fsl.flower.internals import enter_identity, exit_identity
from tests.helpers.keyed import KeyedCloud, KeyedNode


@pytest.fixture(autouse=True)
def identity():
    enter_identity()
    yield
    exit_identity()


TERMS = Terms(wait=1e-9)


def look(members, *nodes, devices=1, edges=1, tops=0):
    members.look(KeyedCloud(*nodes), devices, edges, first=True, tops=tops)
    return {name: member.node for member in members.online for name in member.names}


def table_of(folder, *lines):
    path = folder / "table"
    path.write_text("# ours\n\n" + "".join(f"{line}\n" for line in lines))
    return Terms(wait=1e-9, members=str(path))


@pytest.fixture
def three():
    """The rightful device 0, an edge, and another enrolled node, which answers first."""
    return (
        KeyedNode(1, devices=(0,), label="device-0"),
        KeyedNode(2, edge=0),
        KeyedNode(3, devices=(0,), label="device-7"),
    )


def test_by_the_operators_table_only_the_rightful_node_answers(three, tmp_path, caplog):
    rightful, edge, other = three
    terms = table_of(tmp_path, f"device-0 {rightful.ssh} whoever", f"edge-0 {edge.ssh}", "devices-5-9 " + other.ssh)
    assert look(Members("", terms), *three) == {"device-0": 1, "edge-0": 2}
    said = caplog.text
    assert f"node 3 takes no part: device-0 belongs to key {fingerprint_of(rightful.der)} by" in said
    assert f"this node's key is {fingerprint_of(other.der)}" in said


def test_a_server_above_an_edge_has_a_name_of_its_own(three, tmp_path, caplog):
    device, edge, _ = three
    above, stranger = KeyedNode(4, top=0), KeyedNode(5, top=0)
    lines = [f"device-0 {device.ssh}", f"edge-0 {edge.ssh}", f"top-0 {above.ssh}"]
    members = Members("", table_of(tmp_path, *lines))
    assert look(members, device, edge, above, stranger, tops=1) == {"device-0": 1, "edge-0": 2, "top-0": 4}
    assert f"node 5 takes no part: top-0 belongs to key {fingerprint_of(above.der)} by" in caplog.text
    look(Members("", TERMS), device, edge, tops=1)
    assert "not there: the server above edge 0" in caplog.text


def test_who_is_not_in_the_operators_table_is_refused(three, tmp_path, caplog):
    rightful, edge, other = three
    terms = table_of(tmp_path, f"device-0,edge-0 {other.ssh}")
    with pytest.raises(RunError, match=r"edge-0 belongs to key"):
        look(Members("", terms), rightful, edge)
    other.devices = (0, 1)
    with pytest.raises(
        RunError, match=r"device-1 is not in .*table .* add the line: device-1 ecdsa-sha2-nistp384 AAAA"
    ):
        look(Members("", terms), other)


def test_a_number_that_two_answer_for_is_nobody_s_until_a_table_says_whose(three, caplog):
    with pytest.raises(RunError, match=r"device 0 is hosted already by node device-7 \(key SHA256:"):
        look(Members("", TERMS), *three)
    assert "this is node device-7 (key SHA256:" in caplog.text
    assert "this is node device-0 (key SHA256:" in caplog.text


@pytest.mark.parametrize("kept", [True, False], ids=["in the run's folder", "in memory"])
def test_the_first_key_that_answers_keeps_its_numbers(kept, three, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rightful, edge, other = three
    path = tmp_path / TABLE
    members = Members("", TERMS, path if kept else None)
    assert look(members, rightful, edge) == {"device-0": 1, "edge-0": 2}
    assert f"device-0: key {fingerprint_of(rightful.der)}, noted in" in caplog.text
    with pytest.raises(RunError, match="device-0 belongs to key"):
        look(members, edge, other)  # while the rightful node is away
    assert look(members, *three) == {"device-0": 1, "edge-0": 2}
    if kept:  # the run goes on in another process
        assert read_table(path) == {"device-0": rightful.der, "edge-0": edge.der}
        assert look(Members("", TERMS, path), *three) == {"device-0": 1, "edge-0": 2}


def test_a_lost_key_is_replaced_in_the_table(three, tmp_path):
    """Enrolled again: unregister the old key, register the new one, and put it into the line; the run goes on."""
    rightful, edge, _ = three
    path = tmp_path / TABLE
    members = Members("", TERMS, path)
    look(members, rightful, edge)
    renewed = KeyedNode(4, devices=(0,))
    with pytest.raises(RunError, match=rf"if the key was replaced, .*: device-0 {renewed.ssh[:40]}"):
        look(members, edge, renewed)
    path.write_text(path.read_text().replace(rightful.ssh, renewed.ssh))
    assert look(members, edge, renewed) == {"device-0": 4, "edge-0": 2}
    assert look(members, rightful, edge, renewed) == {"device-0": 4, "edge-0": 2}  # the old key counts no more


def test_a_key_that_loses_its_number_in_the_middle_of_a_run_is_refused(three, tmp_path, caplog):
    rightful, edge, other = three
    terms = table_of(tmp_path, f"device-0 {other.ssh}", f"edge-0 {edge.ssh}")
    members = Members("", terms)
    assert look(members, edge, other) == {"device-0": 3, "edge-0": 2}
    table_of(tmp_path, f"device-0 {rightful.ssh}", f"edge-0 {edge.ssh}")
    assert look(members, *three) == {"device-0": 1, "edge-0": 2}


def test_edges_have_keys_too(three, caplog):
    rightful, edge, _ = three
    members = Members("", TERMS)
    look(members, rightful, edge)
    assert look(members, rightful, KeyedNode(5, edge=0)) == {"device-0": 1}
    assert "edge-0 belongs to key" in caplog.text


def test_a_node_without_a_registered_key_hosts_nothing(three):
    class Open(KeyedCloud):
        def get_nodes(self):
            return []

    with pytest.raises(RunError, match="the SuperLink knows no key of it"):
        Members("", TERMS).look(Open(*three[:2]), 1, 1, first=True)
    free = Members("", Terms(wait=1e-9, bind_keys=False))
    free.look(Open(*three[:2]), 1, 1, first=True)
    assert len(free.online) == 2


@pytest.mark.parametrize(("samples", "said"), [(0, "device 0 holds 0 samples; one is the least"), (-4, "samples=-4")])
def test_a_device_that_holds_nothing_is_refused(samples, said, three):
    _, edge, _ = three
    with pytest.raises(RunError, match=said):
        look(Members("", TERMS), edge, KeyedNode(6, devices=(0,), samples=samples))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("device-0", r"line 3: there is no public key behind the names"),
        ("device-0 ssh-rsa AAAA", r"line 3: there is no public key"),
        ("phone-0 {key}", r"line 3: 'phone-0' names no device, edge or top"),
        ("devices-9-0 {key}", r"line 3: 'devices-9-0' is no range"),
        ("devices-0-999999999 {key}", r"is no range of devices"),
        ("device-0,device-0 {key}", r"line 3: device-0 has a line already"),
        ("\0", r"line 3: "),
    ],
)
def test_a_line_that_cannot_be_is_named(line, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        Members("", table_of(tmp_path, line.format(key=KeyedNode(1).ssh)))


def test_a_table_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"deployment.members=.*none: it cannot be read \(No such file"):
        Members("", Terms(members=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="with bind_keys=false nobody's key counts"):
        Terms(members="table", bind_keys=False)


def test_fsl_certs_writes_the_table(tmp_path, capsys):
    assert command([str(tmp_path), "--edges", "1", "--devices", "2"]) == 0
    first = read_table(tmp_path / TABLE)
    assert sorted(first) == ["device-0", "device-1", "edge-0"]
    assert command([str(tmp_path), "--edges", "1", "--devices", "3", "--add"]) == 0
    more = read_table(tmp_path / TABLE)
    assert {name: more[name] for name in first} == first
    assert sorted(more) == ["device-0", "device-1", "device-2", "edge-0"]
    assert str(tmp_path / TABLE) in capsys.readouterr().out


def test_a_node_of_several_devices_has_one_line(tmp_path):
    issue(tmp_path, identities(1, 1))
    files = CertificateFolder(tmp_path)
    add_nodes(tmp_path / TABLE, {"devices-0-3": files.node_public_key("device-0")})
    assert len(set(read_table(tmp_path / TABLE).values())) == 1
    assert sorted(read_table(tmp_path / TABLE)) == [f"device-{k}" for k in range(4)]
