"""n_k: the account, the rates and the weights are of what the members hold, not of a planned partition."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from fsl.strategies import SplitFedV1

from fsl.data import IID, as_partitioner, divide
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.terms import Terms
from fsl.errors import ConfigError, RunError
from fsl.messages.round_plan import CohortTask, DeviceTask
from fsl.privacy import DPSGD, Privacy
from fsl.privacy.claims import ReleaseCounts, Setting, claim
from fsl.privacy.ledger import Ledger
from fsl.privacy.member_counts import take_counts, take_members
from fsl.round.node import Node
from tests.helpers.lowlevel import a_plan, a_worker
from tests.helpers.runs import run
from tests.helpers.small import small_task
from tests.helpers.wired import Wired

DP = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5))
FIXED = Privacy(dp_sgd=DPSGD(noise_multiplier=0.5, sampling="shuffle"))


def divided(data, rows):
    return divide(data, as_partitioner(rows, data), len(rows), None, 0)


class OtherData(Wired):
    """Nodes whose rows are not those that the cloud planned: as many as `held` says, by device."""

    held = (20, 60)

    def open(self, workload, nodes):
        bounds = [0, *(sum(self.held[: i + 1]) for i in range(len(self.held)))]
        rows = [list(range(a, b)) for a, b in zip(bounds, bounds[1:])]
        return super().open(replace(workload, partition=divided(workload.data, rows)), nodes)


def backend(folder, encrypted, max_samples=None):
    roster = Roster("", Terms(wait=5, bind_keys=False, max_samples=max_samples))
    return OtherData(folder=folder, edges=1, roster=roster, **encrypted)


def told(folder):
    return json.loads((folder / "privacy.json").read_text())["devices"]


@pytest.mark.slow
@pytest.mark.parametrize("cap", [None, 10], ids=["uncapped", "capped weights"])
def test_the_account_is_of_the_members_own_numbers(cap, encrypted, tmp_path):
    options = {"devices": 2, "rounds": 1, "batch_size": 10, "privacy": DP, "out": tmp_path / "run"}
    run(SplitFedV1(), backend=backend(tmp_path / "nodes", encrypted, cap), **options)
    devices = told(tmp_path / "run")
    assert {device: one["samples"] for device, one in devices.items()} == {"0": 20, "1": 60}
    setting = Setting(DP, "averaged", True, 10, 1, secure=True, encrypted=True)
    assert devices["0"]["epsilon"]["model"] == claim("model", setting, ReleaseCounts(20).more(2, 1)).epsilon
    own = [json.loads(path.read_text())["devices"] for path in (tmp_path / "nodes").glob("*/privacy/*.json")]
    assert devices == {device: one for each in own for device, one in each.items()}  # as the nodes count themselves


@pytest.mark.slow
def test_a_target_that_the_members_numbers_do_not_reach_ends_before_anything_is_released(encrypted, tmp_path):
    options = {"devices": 2, "rounds": 2, "batch_size": 10, "out": tmp_path / "run"}
    target = Privacy(dp_sgd=DPSGD(target_epsilon=3.0))
    with pytest.raises(RunError, match=r"device 0: its node holds 20 samples, and .*=3 was solved for 48"):
        run(SplitFedV1(), backend=backend(tmp_path / "nodes", encrypted), privacy=target, **options)
    assert not list((tmp_path / "nodes").glob("*/privacy/*.json"))


def test_batches_that_a_member_cannot_fill_end_before_anything_is_released(encrypted, tmp_path):
    with pytest.raises(RunError, match=r"device 0: its node holds 20 samples, fewer than batch_size=30"):
        run(SplitFedV1(), devices=2, batch_size=30, privacy=DP, backend=backend(tmp_path, encrypted))


# Without a wire.


def solved(planned, epsilon=3.0, rounds=4):
    """A ledger whose noise was solved for these n_k, as `simulate` makes it."""
    from fsl.run.privacy_check import _solved, _target

    setting = Setting(Privacy(dp_sgd=DPSGD(target_epsilon=epsilon)), "averaged", True, 10, 1)
    trains = Counter(dict.fromkeys(range(len(planned)), rounds))
    ledger = Ledger(replace(setting, privacy=_solved(setting, planned, trains)), planned, None)
    ledger.target = _target(setting, planned, trains)
    return ledger


@pytest.mark.slow
def test_the_line_names_the_noise_that_reaches_the_target():
    with pytest.raises(RunError, match=r"for these members privacy.dp_sgd.noise_multiplier=[\d.]+ reaches it") as said:
        take_members(solved([480, 480]), {0: 24, 1: 480}, first=True)
    multiplier = float(str(said.value).split("noise_multiplier=")[1].split()[0])
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=multiplier))
    found = claim("model", Setting(privacy, "averaged", True, 10, 1), ReleaseCounts(24).more(4 * 3, 4, 4)).epsilon
    assert 2.9 < found < 3.01


@pytest.mark.slow
def test_as_many_or_more_samples_than_planned_are_within_the_target():
    assert take_members(solved([48, 48]), {0: 48, 1: 480}, first=True) == {}


@pytest.mark.slow
def test_who_joins_later_with_too_few_is_left_out_by_name():
    ledger = solved([480, 480])
    assert take_members(ledger, {0: 480}, first=True) == {}
    refused = take_members(ledger, {0: 480, 1: 24}, first=False)
    assert list(refused) == [1]
    assert "its node holds 24 samples" in refused[1]


def test_a_device_that_changes_its_number_is_counted_by_the_fewest():
    setting = Setting(DP, "averaged", True, 10, 1)
    ledger = Ledger(setting, [480], None)
    ledger.before([0])
    take_counts(ledger, {0: 100})
    ledger.before([0])
    assert ledger.release_counts[0] == ReleaseCounts(100).more(48, 1).more(10, 1)
    take_counts(ledger, {0: 480})
    assert ledger.release_counts[0].samples == 100
    both = (
        claim("model", setting, ReleaseCounts(480).more(48, 1)).epsilon,
        claim("model", setting, ReleaseCounts(100).more(10, 1)).epsilon,
    )
    assert ledger.claims()["model"].epsilon > max(both)


def test_a_node_refuses_a_plan_that_counts_other_samples(tmp_path):
    node = Node(a_worker(tmp_path).workload)
    held = node.worker.workload.partition.size(0)
    plan = replace(a_plan(), cohorts=(CohortTask(edge=0, devices=(DeviceTask(device=0, samples=held + 1),)),))
    with pytest.raises(ConfigError, match=rf"device 0 holds {held} samples here, and the run's plan counts {held + 1}"):
        node.train(plan, None)


def test_in_simulation_nodes_with_another_partition_than_the_ledgers_do_not_train(monkeypatch):
    """Half of the rows on the nodes would cost more than is told."""
    from fsl.run import backend as backends

    task = small_task()
    fewer = divide(task, IID(), 2, 20, 1)
    make = backends.workload_app
    monkeypatch.setattr(
        backends, "workload_app", lambda workload, *given: make(replace(workload, partition=fewer), *given)
    )
    with pytest.raises((RunError, ConfigError), match=r"device 0 holds 20 samples here, and the run's plan counts 48"):
        run(SplitFedV1(), devices=2, rounds=1, batch_size=10, privacy=DP)
