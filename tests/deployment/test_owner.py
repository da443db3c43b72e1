"""What a node's owner allowed, against a cloud that asks for more: every message that a node answers."""

import json
import math
import multiprocessing
import threading
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fsl.data import IID, divide
from fsl.data.partition import AllRows
from fsl.deployment.node.device_metrics import SpentEpsilon
from fsl.deployment.node.node_host import NodeHost
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import Limit, OwnLedger, spent
from fsl.deployment.node.owner_allows import refuse_part
from fsl.deployment.node.setup import build_workload
from fsl.errors import ConfigError, FslError, TrustError
from fsl.flower.internals import enter_identity, exit_identity
from fsl.flower.records import states_to_record
from fsl.importing.spec import Spec
from fsl.messages.node_part import EdgePart, NodePart, Ticket, TopPart, WayUp
from fsl.messages.record_names import ARRAYS, CONFIG, PART, PLAN, SETUP
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan
from fsl.privacy import DPSGD, CutNoise, Privacy, RandomizedLabels
from fsl.privacy.ledger import read_devices
from fsl.round.workload import Worker
from tests.helpers.lowlevel import a_plan
from tests.helpers.node_setups import setup_of
from tests.helpers.small import small_task

DP = Privacy(dp_sgd=DPSGD(noise_multiplier=2.0))
MINE, OTHER = 1, 5
ALLOWED = ("fsl", "torch.optim")


@pytest.fixture(autouse=True)
def identity():
    enter_identity()
    yield
    exit_identity()


class Owner:
    """A device's node with an owner's configuration, and a cloud that says whatever it is told to."""

    def __init__(self, folder, **config):
        key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "key").write_bytes(key)
        (folder / "key").chmod(0o600)
        self.state = folder / "state"
        device = {"role": "device", "devices": str(MINE), "rows": "all", "key": str(folder / "key")}
        self.config = {**device, "state": str(self.state), **config}
        self.host = NodeHost()
        self.setup = setup_of("data=digits", "devices=8", "model=mlp", "model.hidden=[4]")

    def arrays(self):
        worker = Worker(build_workload(self.setup, NodeSettings.read(self.config)))
        layouts = {name: segment.layout for name, segment in worker.segments.items()}
        return states_to_record(layouts, {name: layout.capture() for name, layout in layouts.items()})

    def ask(self, kind, plan, part=None, arrays=None):
        told = {SETUP: self.setup.to_json(), PLAN: plan.to_json(), PART: "" if part is None else part.to_json()}
        content = RecordDict({CONFIG: ConfigRecord(told), ARRAYS: arrays or ArrayRecord()})
        return self.host.answer(kind, 7, content, self.config)

    def ledgers(self):
        return sorted((self.state / "privacy").glob("*.json"))


@pytest.fixture
def owners():
    """Makes owners, whose nodes end with the test."""
    made = []

    def make(folder, **config):
        made.append(Owner(folder, **config))
        return made[-1]

    yield make
    for one in made:
        one.host.close()


@pytest.fixture
def owner(owners, tmp_path):
    return owners(tmp_path)


def whole(privacy=None, **changed):
    """A round of the whole model on devices, whose batches are large, so that it is quick."""
    return replace(a_plan(), trainer=None, batch_size=700, privacy=privacy, **changed)


def alone(*devices):
    return NodePart(alone=tuple(DeviceTask(device=device) for device in devices))


def ticket(device):
    return Ticket(task=DeviceTask(device=device), edge=0, address="127.0.0.1:1", token="")


def edge_part(edge, *devices):
    return EdgePart(
        cohort=CohortTask(edge=edge, devices=tuple(DeviceTask(device=device) for device in devices)),
        cloud_key="ab" * 32,
        fence=1,
    )


def hops(*tops, up=None, trainer=True):
    """A round with two hops, with a part for edge 0 of devices 0 and 1, or for servers above edges."""
    plan = a_plan()
    plan = replace(plan, learning_rates={**plan.learning_rates, "top": 0.05}, **({} if trainer else {"trainer": None}))
    edges = () if tops else (replace(edge_part(0, 0, 1), up=up),)
    return plan, NodePart(edges=edges, tops=tuple(top_part(*top) for top in tops))


def top_part(edge, *devices):
    part = edge_part(edge, *devices)
    return TopPart(cohort=part.cohort, cloud_key=part.cloud_key, fence=part.fence)


def way_up(*devices):
    return WayUp(address="127.0.0.1:1", tokens=tuple((device, "ab") for device in devices))


@pytest.mark.parametrize(
    ("role", "asked", "problem"),
    [
        ("device", hops((0, 0, 1)), "of the server above edge 0, and this node hosts no such server"),
        ("edge", hops((0, 0, 1)), "of the server above edge 0, and this node hosts no such server"),
        ("top", hops((1, 0, 1)), "of the server above edge 1, and this node hosts the server above edge 0"),
        ("top", hops((0, 0, 0)), "names device 0 twice"),
        ("top", (a_plan(), NodePart(tops=(top_part(0, 0),))), "without a third segment at the cloud asks for a server"),
        ("top", hops((0, 0), trainer=False), "without an edge trainer asks for training at an edge"),
        ("top", (a_plan(), NodePart(edges=(edge_part(0, 0),))), "is of edge 0, and this node hosts no edge"),
        ("top", (a_plan(), NodePart(tickets=(ticket(0),))), "is for device 0, and this node hosts none"),
        ("top", (whole(), alone(0)), "is for device 0, and this node hosts none"),
        ("edge", hops(), "names no server above it, and its plan has a third segment"),
        (
            "edge",
            (a_plan(), NodePart(edges=(replace(edge_part(0, 0), up=way_up(0)),))),
            "names a server above it, and its plan has no third segment",
        ),
        ("edge", hops(up=way_up(0)), "has other tokens for the server above it than devices"),
        ("edge", hops(up=way_up(0, 1, 2)), "has other tokens for the server above it than devices"),
    ],
)
def test_a_server_does_its_own_part_of_two_hops(role, asked, problem):
    config = {"role": role, "listen": "127.0.0.1:0", "state": "s", "insecure": True}
    if role == "device":
        config = {"role": role, "devices": "0,1", "key": "k", "state": "s", "ca": "ca.pem"}
    with pytest.raises(TrustError, match=problem):
        refuse_part(NodeSettings.read(config), *asked, 2)


def test_a_part_in_two_hops_survives_its_way():
    for _, part in (hops((0, 0, 1)), hops(up=way_up(0, 1))):
        assert NodePart.from_json(part.to_json()) == part
    assert hops((0, 0))[1].holds("top")
    assert [name for name in ("front", "back", "top") if hops(up=way_up(0, 1))[1].holds(name)] == ["back"]


HOSTILE = {
    "no part": (
        whole(cohorts=(CohortTask(edge=0, devices=(DeviceTask(device=MINE),)),)),
        None,
        "a plan came without a part",
    ),
    "no part, an edge": (a_plan(), None, "a plan came without a part"),
    "foreign": (whole(), alone(OTHER), "is for device 5, and this node hosts 1"),
    "foreign too": (whole(), alone(MINE, OTHER), "is for device 5, and this node hosts 1"),
    "foreign ticket": (a_plan(), NodePart(tickets=(ticket(OTHER),)), "is for device 5, and this node hosts 1"),
    "twice": (whole(), alone(MINE, MINE), "names device 1 twice"),
    "ticket twice": (a_plan(), NodePart(tickets=(ticket(MINE), ticket(MINE))), "names device 1 twice"),
    "an edge": (a_plan(), NodePart(edges=(edge_part(0, MINE),)), "is of edge 0, and this node hosts no edge"),
    "bare under a cut's account": (a_plan(), alone(MINE), "asks a device to train without an edge"),
    "ticket without an edge": (
        whole(),
        NodePart(tickets=(ticket(MINE),)),
        "without an edge trainer asks for training at",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "part", "problem"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_node_trains_its_own_devices_by_its_own_part(plan, part, problem, owner):
    with pytest.raises(TrustError, match=problem):
        owner.ask("train", plan, part)


def test_what_a_run_has_not_is_refused(owners, tmp_path):
    owner = owners(tmp_path, devices="9")
    with pytest.raises(TrustError, match=r"is for device 9, and its run has 8 devices"):
        owner.ask("train", whole(), alone(9))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train.more", "system", ""])
def test_only_three_kinds_of_messages_are_answered(kind, owner):
    with pytest.raises(TrustError, match="this node answers query, train, evaluate"):
        owner.ask(kind, whole(), alone(MINE))


def test_a_node_without_a_role_takes_no_part(tmp_path):
    host, setup = NodeHost(), setup_of("data=digits", "devices=8", "model=mlp")
    told = {SETUP: setup.to_json(), PLAN: whole().to_json(), PART: alone(MINE).to_json()}
    with pytest.raises(TrustError, match="a part in a round came to a node without a role"):
        host.answer("train", 7, RecordDict({CONFIG: ConfigRecord(told)}), {})


@pytest.mark.slow
def test_scores_are_of_a_node_s_own_devices_and_none_where_its_owner_has_a_limit(owners, tmp_path, owner):
    with pytest.raises(TrustError, match="is for device 5, and this node hosts 1"):
        owner.ask(
            "evaluate", EvaluatePlan(run="run", round=1, devices=(DeviceTask(device=OTHER),)), arrays=owner.arrays()
        )
    mine = EvaluatePlan(run="run", round=1, devices=(DeviceTask(device=MINE),))
    owner.ask("train", whole(), alone(MINE), owner.arrays())  # without privacy, so that its own rows may be scored
    assert owner.ask("evaluate", mine, arrays=owner.arrays())
    (tmp_path / "limited").mkdir()
    limited = owners(tmp_path / "limited", **{"max-epsilon": 3.0})
    with pytest.raises(ConfigError, match="max-epsilon=3: scores of private fronts are exact and in no account"):
        limited.ask("evaluate", mine, arrays=owner.arrays())


UNTRUE = {
    "another device": (
        replace(a_plan(), privacy=DP, device=Spec("fsl.round.front_device.LocalLossDevice")),
        "device=fsl.round.front_device.LocalLossDevice: only fsl.device.Device clips",
    ),
    "rows that mix": (replace(a_plan(), privacy=DP, up=Spec("fsl.codecs.Int8")), "it encodes a batch as a whole"),
    "rows that mix down": (replace(a_plan(), privacy=DP, down=Spec("fsl.codecs.Int8")), "codec.down=fsl.codecs.Int8"),
    "averages under Poisson": (
        replace(a_plan(trainer="fsl.trainers.Pooled", phi=0.5), privacy=DP),
        "a Poisson draw shifts the rows",
    ),
    "a cut without an edge": (whole(Privacy(cut=CutNoise(5.0))), "protect what goes to an edge"),
    "labels without an edge": (whole(Privacy(labels=RandomizedLabels(1.0))), "protect what goes to an edge"),
    "no noise named": (whole(Privacy(dp_sgd=DPSGD(target_epsilon=1.0))), "must name the noise multiplier"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "problem"), UNTRUE.values(), ids=UNTRUE.keys())
def test_a_plan_that_is_not_what_its_privacy_says_is_refused_on_the_node(plan, problem, owner):
    part = alone(MINE) if plan.trainer is None else NodePart(tickets=(ticket(MINE),))
    with pytest.raises(ConfigError, match=problem):
        owner.ask("train", plan, part)
    assert not owner.ledgers()


@pytest.mark.slow
def test_a_private_round_draws_secure_noise_whatever_its_plan_says(owner):
    totals = []
    for _ in range(2):
        reply = owner.ask("train", whole(DP, seed=0), alone(MINE), owner.arrays())
        totals.append({name: array.numpy() for name, array in reply.array_records[ARRAYS].items()})
    assert any((one != totals[1][name]).any() for name, one in totals[0].items())


def test_a_large_delta_buys_nothing(owners, tmp_path):
    """At delta .9 forty rounds were told to cost epsilon -1.56."""
    owner = owners(tmp_path, **{"max-epsilon": 1.0})
    large = replace(DP, delta=0.9)
    with pytest.raises(ConfigError, match=r"max-delta=0.0001 over all runs: .* asks device 1 for 0.9, after 0 in"):
        owner.ask("train", whole(large), alone(MINE), owner.arrays())
    assert not owner.ledgers()


# The count over all runs.


def own_ledger(folder, run="a", limit=None, **options):
    return OwnLedger(folder, run, limit, **options)


def rows_of(devices=2):
    return divide(small_task(), IID(), devices, None, 0)


def spend(ledger, plan, devices=(0,), partition=None):
    return ledger.before(plan, partition or rows_of(), list(devices), ALLOWED, tail=False)


def private(privacy=DP, **changed):
    return replace(a_plan(), privacy=privacy, **changed)


def cost(folder):
    (path,) = folder.glob("*.json")
    return {d: told["model"] for d, (_, told) in read_devices(path).items()}


@pytest.mark.slow
def test_deltas_add_up_over_runs(tmp_path):
    limit = Limit(1e9, "model", delta=3e-5)
    for run in "abc":
        spend(own_ledger(tmp_path, run, limit), private())
        spend(own_ledger(tmp_path, run, limit), private())  # a second round needs no other
    with pytest.raises(ConfigError, match=r"max-delta=3e-05 over all runs: .* device 0 for 1e-05, after 3e-05 in"):
        spend(own_ledger(tmp_path, "d", limit), private())
    with pytest.raises(ConfigError, match="max-delta"):  # a plan that names another accountant or delta is another run
        spend(own_ledger(tmp_path, "a", limit), private(replace(DP, delta=2e-5)))


@pytest.mark.slow
def test_the_plan_does_not_choose_the_accountant(tmp_path):
    for accountant in ("rdp", "prv"):
        for asked in ("rdp", "prv"):
            folder = tmp_path / f"{accountant}-{asked}"
            spend(own_ledger(folder, accountant=accountant), private(replace(DP, accountant=asked)))
    found = {name: cost(tmp_path / name) for name in ("rdp-rdp", "rdp-prv", "prv-prv", "prv-rdp")}
    assert found["rdp-rdp"] == found["rdp-prv"] != found["prv-prv"] == found["prv-rdp"]


def test_another_name_setting_or_device_number_does_not_start_the_count_anew(tmp_path):
    """Rows that are the device's own are the same rows under every number."""
    own = AllRows(8, 96)
    spend(own_ledger(tmp_path, "a", same_rows=True), private(), [0], own)
    once = cost(tmp_path)[0]
    limit = Limit(1.9 * once, "model")
    for run, device, changed in (("b", 0, {}), ("a", 0, {"local_epochs": 2}), ("a", 5, {}), ("b", 5, {})):
        with pytest.raises(ConfigError, match=rf"in this run, after {once:.4g} in others"):
            spend(own_ledger(tmp_path, run, limit, same_rows=True), private(**changed), [device], own)


def test_in_another_run_a_sample_may_have_been_with_any_device_of_the_node(tmp_path):
    spend(own_ledger(tmp_path, "a"), private(), [0])
    once = cost(tmp_path)[0]
    with pytest.raises(ConfigError, match=rf"device 1 would have spent .* after {once:.4g} in others"):
        spend(own_ledger(tmp_path, "b", Limit(1.9 * once, "model")), private(), [1])
    spend(own_ledger(tmp_path, "a", Limit(1.9 * once, "model")), private(), [1])  # in one run it has one device


def test_devices_that_share_rows_have_no_limit_of_their_own(tmp_path):
    with pytest.raises(ConfigError, match="devices of this node share rows"):
        spend(own_ledger(tmp_path, "a", Limit(9.0, "model")), private(), [0, 1], AllRows(8, 96))


def test_a_step_is_not_done_again_beyond_the_limit(tmp_path):
    once = spend(own_ledger(tmp_path / "free"), private())
    assert once is not None
    first = cost(tmp_path / "free")[0]
    once.again(0, 2)
    account = spend(own_ledger(tmp_path, limit=Limit(1.0001 * first, "model")), private())
    assert account is not None
    before = cost(tmp_path)
    with pytest.raises(ConfigError, match=r"max-epsilon=.* with this round device 0 would have spent"):
        account.again(0, 2)
    assert cost(tmp_path) == before  # nothing was charged, and nothing is released


def test_what_is_spent_is_the_sum_over_runs_of_the_worst_device(tmp_path):
    assert spent(tmp_path, "model", same_rows=False) is None
    spend(own_ledger(tmp_path, "a"), private(), [0, 1])
    spend(own_ledger(tmp_path, "a"), private(), [1])
    spend(own_ledger(tmp_path, "b"), private(), [0])
    costs = [[told["model"] for _, told in read_devices(path).values()] for path in tmp_path.glob("*.json")]
    assert sorted(map(len, costs)) == [1, 2]
    assert spent(tmp_path, "model", same_rows=False) == pytest.approx(sum(map(max, costs)))
    assert spent(tmp_path, "model", same_rows=True) == pytest.approx(sum(map(sum, costs)))
    assert spent(tmp_path, "edge", same_rows=False) == float("inf")


def test_prometheus_reads_what_a_node_has_spent_and_may_spend(tmp_path):
    settings = NodeSettings.read(Owner(tmp_path, **{"max-epsilon": 8.0}).config)
    told = lambda: {m.name: m.samples[0] for m in SpentEpsilon(settings).collect()}  # noqa: E731
    assert {name: (sample.labels, sample.value) for name, sample in told().items()} == {
        "fsl_device_epsilon_max": ({"against": "model"}, 8.0)
    }
    folder = settings.state / "privacy"
    spend(own_ledger(folder), private())
    assert told()["fsl_device_epsilon"].value == cost(folder)[0]
    next(folder.glob("*.json")).write_text("{")
    assert math.isnan(told()["fsl_device_epsilon"].value)


def test_a_negative_epsilon_of_another_run_gives_nothing_back(tmp_path):
    spend(own_ledger(tmp_path, "a"), private())
    (path,) = tmp_path.glob("*.json")
    told = json.loads(path.read_text())
    told["devices"]["0"]["epsilon"]["model"] = -1e9
    path.write_text(json.dumps(told))
    with pytest.raises(ConfigError, match="after 0 in others"):
        spend(own_ledger(tmp_path, "b", Limit(1e-6, "model")), private())


@pytest.mark.parametrize("text", ["", "{", '{"devices": {}}'])
def test_what_is_left_of_another_run_s_ledger_is_not_taken_for_nothing(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json is damaged"):
        spend(own_ledger(tmp_path, "a", Limit(9.0, "model")), private())


@pytest.mark.slow
def test_threads_that_charge_one_file_lose_no_charge(tmp_path):
    threads = [threading.Thread(target=spend, args=(own_ledger(tmp_path), private())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = tmp_path.glob("*.json")
    assert read_devices(path)[0][0].rounds == 8


def _charge_some(folder):
    for _ in range(4):
        spend(own_ledger(folder), private())


@pytest.mark.slow
def test_processes_that_charge_one_file_lose_no_charge(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_charge_some, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    (path,) = tmp_path.glob("*.json")
    assert read_devices(path)[0][0].rounds == 8


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"max-epsilon": 3, "max-delta": 1.0}, r"max-delta=1.0: a probability between 0 and 1"),
        ({"max-epsilon": 3, "max-delta": 0}, r"max-delta=0: a probability between 0 and 1"),
        ({"max-delta": 1e-5}, r"max-delta without max-epsilon limits nothing"),
        ({"max-epsilon": float("inf")}, r"max-epsilon=inf: it is a number above 0"),
        ({"max-epsilon": float("nan")}, r"max-epsilon=nan: it is a number above 0"),
        ({"accountant": "mine"}, r"accountant='mine': allowed are rdp, prv"),
        ({"max-samples": 3}, r"there is no key 'max-samples'"),
    ],
)
def test_an_owner_s_limit_is_one_that_can_be(config, problem):
    device = {"role": "device", "devices": "0", "key": "k", "state": "s", "ca": "ca.pem"}
    with pytest.raises(ConfigError, match=problem):
        NodeSettings.read({**device, **config})


@pytest.mark.parametrize("config", [{"max-epsilon": 3}, {"accountant": "prv"}], ids=["limit", "accountant"])
def test_a_limit_without_a_role_is_refused(config):
    with pytest.raises(FslError, match="role='any'"):
        NodeSettings.read(config)
