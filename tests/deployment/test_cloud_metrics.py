"""What a run's cloud tells Prometheus and its log, against the run's own rows."""

import sys
import time

import pytest
from fsl.simulations import flower_app, flower_cloud
from fsl.strategies import SplitFedV1

from fsl.deployment.cloud.cloud_metrics import CloudMetrics
from fsl.deployment.cloud.members import Member
from fsl.deployment.cloud.roster import Roster
from fsl.deployment.cloud.run_watch import RunWatch
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.local.local_plan import free_ports
from fsl.deployment.local.scraped_metrics import scrape_metrics
from fsl.errors import ConfigError
from fsl.flower.inline_grid import InlineGrid
from fsl.run.observers import RunInfo
from fsl.run.run_folder import RunFolder
from tests.helpers.runs import run
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow


@pytest.fixture
def metrics(tmp_path):
    metrics = CloudMetrics("127.0.0.1:0", "77", tmp_path, lambda: (5, 3))
    yield metrics
    metrics.close()


def row(round, **more):
    return {"round": round, "seconds": 0.5, "devices": 2, "up_bytes": 10, "down_bytes": 5, "model_bytes": 1, **more}


def test_the_metrics_are_those_of_the_run_s_rows(metrics, tmp_path):
    began = time.time()
    done = run(SplitFedV1(), devices=4, backend=Wired(folder=tmp_path), observers=[metrics])
    told = scrape_metrics(metrics.address)
    for name in ("up_bytes", "down_bytes", "model_bytes"):
        assert told[f"fsl_cloud_{name}_total"] == sum(row[name] for row in done.metrics)
    assert told["fsl_cloud_round"] == told["fsl_cloud_rounds"] == told["fsl_cloud_round_seconds_count"] == 2
    assert told["fsl_cloud_round_seconds_sum"] == pytest.approx(sum(row["seconds"] for row in done.metrics))
    assert told["fsl_cloud_last_round_seconds"] == done.metrics[-1]["seconds"]
    assert told["fsl_cloud_devices_finished_total"] == 8
    assert told["fsl_cloud_last_round_devices_finished"] == 4
    assert told["fsl_cloud_devices_lost_total"] == told["fsl_cloud_last_round_devices_lost"] == 0
    assert began <= told["fsl_cloud_last_round_timestamp_seconds"] <= time.time()
    assert (told["fsl_cloud_nodes_online"], told["fsl_cloud_nodes_with_line"]) == (5, 3)
    assert told["fsl_cloud_accuracy"] == done.metrics[-1]["accuracy"]
    assert told["fsl_cloud_loss"] == pytest.approx(done.metrics[-1]["loss"] + done.metrics[-1]["train_loss"])
    assert "fsl_cloud_epsilon" not in told


def test_lost_devices_and_epsilons_are_told(metrics):
    metrics.on_start(RunInfo("S", "M", "D", 4, 9, 3, None))
    assert scrape_metrics(metrics.address)["fsl_cloud_round"] == 2  # it goes on from there
    metrics.on_round(row(3, lost={"1": "gone", "2": "gone"}, epsilon_model=1.5, epsilon_cloud_edge=None))
    metrics.on_round(row(4, loss=None))
    told = scrape_metrics(metrics.address)
    assert (told["fsl_cloud_devices_lost_total"], told["fsl_cloud_last_round_devices_lost"]) == (2, 0)
    assert told["fsl_cloud_epsilon"] == float("inf")  # 1.5 and an unbounded one, added up here
    assert not {"fsl_cloud_loss", "fsl_cloud_accuracy"} & told.keys()


class Lines:
    open = frozenset({2, 3})


def test_nodes_count_as_they_come(tmp_path):
    watch, roster = RunWatch(), Roster("", Terms())
    watch.on_round(row(1))  # nobody asked for metrics
    watch.serve("127.0.0.1:0", "77", tmp_path, roster, Lines())
    roster.members.online = [Member(node, "device", {}, None, "", b"", "") for node in (1, 2)]
    address = watch.metrics.address
    told = scrape_metrics(address)
    assert (told["fsl_cloud_nodes_online"], told["fsl_cloud_nodes_with_line"]) == (2, 1)
    with pytest.raises(ConfigError, match=f"^deployment.metrics={address}: .*name a free host:port$"):
        RunWatch().serve(address, "78", tmp_path, roster, None)
    watch.close()
    watch.close()
    assert scrape_metrics(address) == {}


def test_the_option_is_checked_and_its_library_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"^deployment.metrics='9110': give host:port"):
        Terms(metrics="9110")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in [name for name in sys.modules if name.startswith("fsl.deployment") and name.endswith("_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"^deployment.metrics=127.0.0.1:0: .*pip install 'fsl-flower\[federation\]'"):
        RunWatch().serve("127.0.0.1:0", "77", tmp_path, Roster("", Terms()), None)


def test_a_run_under_flower_has_a_line_a_round_and_frees_its_port(tmp_path, monkeypatch, capsys):
    seen, address = [], f"127.0.0.1:{free_ports(1)[0]}"
    on_round = CloudMetrics.on_round

    def looked(metrics, row):
        on_round(metrics, row)
        seen.append(scrape_metrics(address))

    monkeypatch.setattr(CloudMetrics, "on_round", looked)
    options = "rounds=5 devices=2 data=digits samples_per_device=40 model=mlp deployment.line=flower"
    with InlineGrid(lambda: flower_app.client, 1) as grid:
        flower_cloud.run(grid, f"{options} deployment.metrics={address} hydra.run.dir='{tmp_path}/out'")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round ")]
    assert [line.split(" · ")[:2] for line in lines] == [[f"round {k}/5", "2 devices"] for k in range(1, 6)]
    assert [told["fsl_cloud_round"] for told in seen] == [1, 2, 3, 4, 5]
    assert scrape_metrics(address) == {}
    assert len(RunFolder(tmp_path / "out").read_metrics()) == 5
