"""What lies on a node of people's data, and keys, only their owner may read; nothing outside `state` is touched."""

import json
import os
import stat
import struct
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import fsl
from fsl.deployment.certs import CertificateFolder as Folder
from fsl.deployment.certs import identities, issue
from fsl.deployment.local.federation_record import alone_in
from fsl.errors import CheckpointError, ConfigError, WireError
from fsl.files import save_tensors, write_json
from fsl.importing.spec import Spec
from fsl.messages.node_part import EdgePart, EdgePeer, NodePart, Ticket, Visitor
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.privacy.settings import Privacy, RandomizedLabels
from fsl.private_files import own_folder, private_folder, read_private
from fsl.round.node_store import Store
from fsl.wire.edge.journal import Journal
from fsl.wire.options import Certificates
from fsl.wire.tokens import Claims, load_private_key
from tests.helpers.small import small_model, small_task
from tests.helpers.wired import Wired

CLAIMS = Claims("run", 3, 7, (0, 2), 40, 1000, 1, b"f" * 32)


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def loose(folder):
    """What others may read, write or enter under a folder, itself included."""
    found = [folder, *folder.rglob("*")]
    return [p for p in found if not p.is_symlink() and stat.S_IMODE(p.lstat().st_mode) & 0o077]


def test_after_a_round_a_node_s_state_is_its_owner_s_alone(tmp_path):
    issue(tmp_path / "certs", identities(1, 0))
    files = Folder(tmp_path / "certs")
    device_tls = {"ca": str(files.ca)}
    edge_tls = {**device_tls, "cert": str(files.certificate("edge-0")), "cert-key": str(files.key("edge-0"))}
    fsl.simulate(
        small_model(),
        small_task(),
        strategy="psl",
        cut="pool",
        devices=2,
        rounds=1,
        edges=2,
        optimizer=fsl.Optimizer(reset=False),
        backend=Wired(folder=tmp_path / "nodes", device_nodes=1, edge_tls=edge_tls, device_tls=device_tls),
        privacy=Privacy(labels=RandomizedLabels(3.0)),
    )
    states = [p for p in (tmp_path / "nodes").iterdir() if p.is_dir()]
    kinds = {p.suffix for state in states for p in state.rglob("*") if p.is_file()}
    assert {".safetensors", ".tsv", ".json"} <= kinds  # fronts and optimizers; sessions; what was spent
    assert [loose(state) for state in states] == [[]] * len(states)


def test_a_state_that_was_open_is_closed_and_said(tmp_path, caplog):
    state = tmp_path / "state"
    (state / "runs").mkdir(parents=True)
    (state / "runs" / "front").write_text("private")
    (state / "link").symlink_to("/etc/passwd")
    assert len(loose(state)) == 3
    own_folder("state", state)
    assert loose(state) == []
    assert "3 files and folders were open to other users, and are closed now" in caplog.text
    assert stat.S_IMODE(Path("/etc/passwd").stat().st_mode) & 0o044


def test_a_folder_of_everybody_s_is_no_state(tmp_path):
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"state=.*: it is not this user's own folder \(mode 1777\)"):
        own_folder("state", shared)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_nothing_is_open_for_a_moment(tmp_path, monkeypatch):
    """At every opening of a file, what is created is the owner's alone already."""
    seen = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: seen.append(a) or real(*a, **k))
    folder = private_folder(tmp_path / "a" / "b")
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, folder.parent)] == [0o700, 0o700]
    write_json(folder / "ledger.json", {}, private=True)
    save_tensors(tmp_path / "front", {"x": torch.ones(1)}, private=True)
    assert [a[2] for a in seen if ".tmp" in str(a[0])] == [0o600, 0o600]
    assert loose(folder) == []


def test_results_of_a_simulation_can_be_shared(tmp_path):
    write_json(tmp_path / "metrics.json", {})
    assert stat.S_IMODE((tmp_path / "metrics.json").stat().st_mode) == 0o644


def test_a_cache_of_images_is_closed_also_where_an_earlier_one_was_open(tmp_path, monkeypatch):
    from fsl.data import images
    from tests.helpers.image_files import fill

    cache = tmp_path / "cache"
    monkeypatch.setenv("FSL_CACHE", str(cache))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "arrow")
    folder = str(fill(tmp_path / "some", ["ant", "bee"]))
    images(folder)
    assert loose(cache) == []
    assert [p for p in loose(tmp_path / "arrow") if p.is_file()] == []
    for file in cache.iterdir():
        file.chmod(0o644)
    images(folder)
    assert loose(cache) == []


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "device.key"
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"^key=.*\(mode {mode:04o}\); chmod 600 {path}$"):
        load_private_key(path)
    path.chmod(0o400)
    assert load_private_key(path)


OWNER, USER, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20  # entries of an ACL, as Linux keeps them
READ, WRITE = 4, 2


def give(path: Path, *entries: tuple[int, int, int]) -> None:
    """Give a file this ACL: (entry, rights, whose)."""
    whole = sorted([(OWNER, READ, -1), (MASK, READ | WRITE, -1), *entries])
    packed = [struct.pack("<HHi", *one) for one in whole]
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(packed))
    except OSError:
        pytest.skip("this file system keeps no ACLs")


def test_a_key_that_an_acl_gives_to_this_user_alone_is_read(tmp_path):
    """As systemd hands over credentials: root's, mode 0440, where the group's digit is the ACL's mask."""
    path = tmp_path / "node-key"
    path.write_text("secret")
    give(path, (USER, READ, os.geteuid()), (GROUP, 0, -1), (OTHER, 0, -1))
    assert stat.S_IMODE(path.stat().st_mode) & 0o070
    assert read_private("key", path) == b"secret"


@pytest.mark.parametrize(
    "entry", [(USER, READ, 54321), (USER, WRITE, 54321), (GROUP, READ, -1), (0x08, READ, 54321), (OTHER, READ, -1)]
)
def test_a_key_that_an_acl_gives_to_others_too_is_refused(tmp_path, entry):
    path = tmp_path / "node-key"
    path.write_text("secret")
    base = [one for one in ((GROUP, 0, -1), (OTHER, 0, -1)) if one[0] != entry[0]]
    give(path, (USER, READ, os.geteuid()), *base, entry)
    with pytest.raises(ConfigError, match=rf"; chmod 600 {path}$|; setfacl -b {path} && chmod 600 {path}$"):
        read_private("key", path)


def test_keys_of_certificates_too(tmp_path):
    issue(tmp_path, identities(1, 0))
    files = Folder(tmp_path)
    files.key("edge-0").chmod(0o644)
    ends = Certificates(files.ca, files.certificate("edge-0"), files.key("edge-0"))
    for use in (ends.edge_files, ends.device_files):
        with pytest.raises(ConfigError, match="chmod 600"):
            use()
    files.ca_key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        issue(tmp_path, identities(1, 1), add=True)


def test_a_federation_s_folder_is_closed(tmp_path):
    folder = tmp_path / "federation"
    folder.mkdir(mode=0o755)
    with alone_in(folder):
        assert loose(folder) == []


# Names from the network

OUTSIDE = ["../../evil", "/etc/evil", "..", "0/../../x", "x\0y", "", "a" * 5000, -1, 1.5, True, None, 1 << 40, [1], {}]
TASK = {"device": 0, "version": 0, "saved": 0}


def a_part(**ticket):
    edge = EdgePart(
        cohort=CohortTask(edge=0, devices=(DeviceTask(device=0),)),
        cloud_key="ab" * 32,
        fence=1,
        peers=(EdgePeer(edge=1, address="127.0.0.1:1", key="cd" * 32),),
        visitors=(Visitor(task=DeviceTask(device=1), home=1),),
    )
    there = Ticket(
        task=DeviceTask(device=0), edge=0, address="edge0.example.org:9000", token="ee" * 40, others=((1, "[::1]:90"),)
    )
    return NodePart(
        edges=(edge,),
        tickets=(replace(there, **ticket),),
        relay_key="ff" * 32,
        alone=(DeviceTask(device=2),),
        replicate_every=5,
    )


def a_plan():
    return RoundPlan(
        run="r",
        seed=0,
        round=1,
        cohorts=(CohortTask(edge=0, devices=(DeviceTask(device=0),)),),
        fronts="private",
        trainer=Spec("fsl.trainers.Pooled"),
        device=Spec("fsl.round.front_device.Device"),
        one_by_one=False,
        optimizer=Spec("torch.optim.SGD"),
        learning_rates={"front": 0.1},
        reset_optimizer=True,
        batch_size=4,
        local_epochs=1,
        up=Spec("fsl.codecs.Identity"),
        down=Spec("fsl.codecs.Identity"),
        kept={"edge-0": (1, 0)},
    )


def leaves(raw, way=()):
    """The ways to every value in nested JSON."""
    if isinstance(raw, dict | list):
        for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
            yield from leaves(value, (*way, key))
    else:
        yield way


def put(raw, way, value):
    copy = json.loads(json.dumps(raw))
    place = copy
    for key in way[:-1]:
        place = place[key]
    place[way[-1]] = value
    return json.dumps(copy)


def test_a_part_survives_its_way():
    assert NodePart.from_json(a_part().to_json()) == a_part()
    assert NodePart.from_json(NodePart().to_json()) == NodePart()


_OTHERS = (
    "deadline",
    "learning_rates",
    "seed",
    "one_by_one",
    "reset_optimizer",
    "privacy",
    "private",
    "probe",
    "kwargs",
)


def taken(read, text):
    """What a message is read as, or else the line that refuses it."""
    try:
        return read(text), ""
    except WireError as error:
        return None, str(error)


def numbers_are_plain(found):
    return all(type(n) is int and 0 <= n < 1 << 64 for n in _numbers(asdict(found)))


def _numbers(value):
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k not in _OTHERS]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif not isinstance(value, str | None):
        yield value


@pytest.mark.parametrize("junk", OUTSIDE, ids=lambda value: ascii(value)[:20])
def test_no_field_of_a_part_or_a_plan_leads_anywhere_else(junk):
    """Every value of a message in turn: it is refused, or what comes of it holds plain numbers alone."""
    for read, whole in (
        (NodePart.from_json, a_part()),
        (RoundPlan.from_json, a_plan()),
        (EvaluatePlan.from_json, None),
    ):
        text = (whole or EvaluatePlan(run="r", round=1, devices=(DeviceTask(device=0),))).to_json()
        for way in leaves(json.loads(text)):
            found, refusal = taken(read, put(json.loads(text), way, junk))
            assert found is None or numbers_are_plain(found), way
            assert not isinstance(found, RoundPlan) or all("/" not in owner for owner in found.kept)
            assert refusal.isprintable()
            assert len(refusal) < 600


@pytest.mark.parametrize(
    "address", ["unix:/run/x.sock", "unix-abstract:x", "dns:///a:1", "a", "a:0", "a:99999", "a b:1"]
)
def test_an_address_is_a_host_and_a_port(address):
    raw = json.loads(a_part().to_json())
    raw["tickets"][0]["address"] = address
    with pytest.raises(WireError, match="this is no part in a round"):
        NodePart.from_json(json.dumps(raw))


@pytest.mark.parametrize("owner", ["../x", "/x", "a/../../b", ".", "a/.hidden", "", "fronts//3", "a\0b", "fronts/\n"])
def test_a_store_keeps_nothing_outside_its_folder(tmp_path, owner):
    store = Store(tmp_path / "state" / "runs" / "r")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.safetensors").write_text("mine")
    for use in (lambda: store.load(owner, 1), lambda: store.save(owner, 2, {}, ()), lambda: store.path(owner, 1)):
        with pytest.raises(WireError, match="is no name of what a node keeps"):
            use()
    assert (tmp_path / "x" / "1.safetensors").read_text() == "mine"
    with pytest.raises(WireError, match="is no generation"):
        store.path("fronts/3", "../../x")


def test_a_crafted_part_writes_and_deletes_nothing_outside(tmp_path):
    raw = json.loads(a_part().to_json())
    raw["tickets"][0]["task"]["device"] = "../../../outside"
    with pytest.raises(WireError, match=r"this is no part in a round|this is not a round's plan"):
        NodePart.from_json(json.dumps(raw))


# Sessions on disk


def test_sessions_are_written_down_for_the_owner_alone(tmp_path):
    path = tmp_path / "state" / "sessions.tsv"
    assert Journal(path).enter(CLAIMS)
    assert loose(path.parent) == []
    assert not Journal(path).enter(CLAIMS)


@pytest.mark.parametrize("junk", [b"\x80\xff\x00junk\n", b"1\t2\t3\tx\n", b"\n", b"-1\t2\t3\t" + b"a" * 64 + b"\n"])
def test_a_damaged_list_of_sessions_is_one_line(tmp_path, junk):
    path = tmp_path / "sessions.tsv"
    Journal(path).enter(CLAIMS)
    path.write_bytes(path.read_bytes() + junk)
    with pytest.raises(
        CheckpointError, match=r"sessions.tsv is damaged: line 2 is no session; between two runs delete"
    ):
        Journal(path)


@pytest.mark.parametrize("tail", [b"4\t7", b"\0\0\0\0", b"\xff"])
def test_a_line_that_a_crash_cut_off_spoils_no_later_one(tmp_path, tail):
    path = tmp_path / "sessions.tsv"
    Journal(path).enter(CLAIMS)
    path.write_bytes(path.read_bytes() + tail)
    assert Journal(path).enter(replace(CLAIMS, device=8))
    again = Journal(path)
    assert not again.enter(CLAIMS)
    assert not again.enter(replace(CLAIMS, device=8))
