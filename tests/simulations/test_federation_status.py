"""What an operator is shown of a federation: of real machines by their endpoints, of a local one by its run."""

import json
import socket
import threading
from types import SimpleNamespace

import pytest
from fsl.simulations import federation_status
from fsl.simulations.fsl_federation import command

from fsl.deployment.cloud.cloud_metrics import CloudMetrics
from fsl.deployment.folder_health import FULL
from fsl.deployment.local.local_plan import free_ports
from fsl.deployment.local.run_overrides import completed
from fsl.deployment.local.run_record import LocalRun, forget_run, read_run, write_run
from fsl.deployment.local.scraped_metrics import metrics_url, parse_metrics
from fsl.deployment.node.node_metrics import NodeMetrics
from fsl.deployment.node.node_settings import NodeSettings
from fsl.errors import ConfigError
from fsl.run.observers import RunInfo
from tests.helpers.node_setups import EDGE

pytestmark = pytest.mark.slow


def row(round, **more):
    return {"round": round, "seconds": 0.52, "devices": 2, "up_bytes": 1_500_000, "down_bytes": 10, **more}


@pytest.fixture
def cloud(tmp_path):
    cloud = CloudMetrics("127.0.0.1:0", "77", tmp_path, lambda: (3, 2))
    yield cloud
    cloud.close()


@pytest.fixture
def node(tmp_path):
    """A node of both roles that has worked a little."""
    config = {**EDGE, "role": "both", "devices": "0", "key": "k", "metrics": "127.0.0.1:0", "state": str(tmp_path)}
    node = NodeMetrics(NodeSettings.read(config))
    node.meters.edge.round_began(4, lambda: 0)
    node.meters.edge.session_opened()
    node.meters.edge.served(0.01)
    node.meters.edge.uploaded(2_000)
    node.meters.devices.round_began(4, 2)
    node.meters.devices.device_lost("silent")
    yield node
    node.close()


def table(capsys):
    return [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_a_table_of_endpoints(cloud, node, capsys):
    cloud.on_start(RunInfo("S", "M", "D", 3, 20, 1, None))
    cloud.on_round(row(1, lost={"1": "gone"}))
    cloud.on_round(row(2))
    assert command(["status", "--metrics", cloud.address, f"http://{node.address}"]) == 0
    lines = table(capsys)
    assert lines[0] == ["metrics", "role", "state", "round", "sessions", "steps", "up", "down", "lost"]
    urls = [f"http://{one.address}/metrics" for one in (cloud, node)]
    assert [urls[0], "cloud", "up", "2/20", "3.0", "MB", "20", "B", "1"] in lines
    assert [urls[1], "edge", "up", "4", "1", "1", "2.0", "kB", "0", "B", "0"] in lines
    assert [urls[1], "device", "up", "4", "1", "0", "0", "B", "0", "B", "1"] in lines
    told = "run 77: round 2 of 20, the last in 0.52 s, devices lost: 0 in it and 1 so far, 2 of 3 nodes have a line"
    assert told.split() in lines


def test_who_does_not_answer_or_is_ill_is_exit_code_1(node, capsys, monkeypatch):
    silent = f"127.0.0.1:{free_ports(1)[0]}"
    assert command(["status", "--metrics", silent, node.address]) == 1
    lines = table(capsys)
    assert [f"http://{silent}/metrics", "no", "answer"] in lines
    monkeypatch.setattr("fsl.deployment.folder_health.free_bytes", lambda _: FULL - 1)
    assert command(["status", "--metrics", node.address]) == 1
    assert [f"http://{node.address}/metrics", "edge", "ill"] in [line[:3] for line in table(capsys)]


def test_somebody_else_s_port_is_no_fsl(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(10)
        port = other.getsockname()[1]

        def answer():
            with other.accept()[0] as client:
                client.recv(1000)
                client.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello_total 1\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert command(["status", "--metrics", f"127.0.0.1:{port}"]) == 1
        thread.join(10)
    assert [f"http://127.0.0.1:{port}/metrics", "no", "fsl"] in table(capsys)


@pytest.mark.parametrize("wrong", ["", "http://", "ftp://host:1", "file:///etc/passwd", "host:port", "host:70000"])
def test_what_is_no_url_is_one_line(wrong, capsys):
    assert command(["status", "--metrics", wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fsl-federation: --metrics {wrong}")


def test_a_url_may_be_short():
    assert metrics_url("edge:9109") == metrics_url("http://edge:9109/") == "http://edge:9109/metrics"
    assert metrics_url("https://edge/fsl/metrics") == "https://edge/fsl/metrics"
    with pytest.raises(ConfigError):
        metrics_url("//edge")


def test_labels_with_any_text_are_read():
    assert parse_metrics('fsl_x{a="} 5",b="c\\"}"} 2 123\nfsl_x 1\nfsl_y{} 3\nfsl_z{a="b"}\n') == {
        "fsl_x": 3,
        "fsl_y": 3,
    }


# The run of a local federation.


def shown(last, at_work=False):
    return federation_status._local_run(SimpleNamespace(last_run=lambda: last, at_work=lambda: at_work))


def test_the_run_at_work_is_told_by_its_cloud(cloud):
    last = LocalRun("77", "", cloud.address)
    assert shown(last) == "at work: run 77, before its first round"
    cloud.on_start(RunInfo("S", "M", "D", 3, 6, 1, None))
    cloud.on_round(row(1, lost={"1": "gone"}))
    told = "round 1 of 6, the last in 0.52 s, devices lost: 1 in it and 1 so far, 2 of 3 nodes have a line"
    assert shown(last) == f"at work: run 77: {told}"
    assert "no run is at work; the last was 78" in shown(LocalRun("78", "", cloud.address))


def test_a_run_that_has_ended_is_told_by_its_folder(tmp_path):
    last = LocalRun("77", str(tmp_path), "")
    assert shown(None) == "no run was sent to it yet"
    assert shown(last, True) == f"at work: run 77, without a round that ended ({tmp_path})"
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row(6, lost={"1": "gone"})) + "\n")
    said = f"the last was 77, its last round 6 in 0.52 s, devices lost in it: 1 ({tmp_path})"
    assert shown(last) == f"no run is at work; {said}"


def test_the_last_run_is_noted(tmp_path):
    assert read_run(tmp_path) is None
    write_run(tmp_path, LocalRun("77", "/out", "127.0.0.1:1"))
    assert read_run(tmp_path) == LocalRun("77", "/out", "127.0.0.1:1")
    (tmp_path / "run.json").write_text("{")
    assert read_run(tmp_path) is None
    forget_run(tmp_path)
    forget_run(tmp_path)


def test_a_run_gets_ports_of_its_own_unless_it_names_some(tmp_path):
    overrides, metrics = completed(["rounds=1"], tmp_path / "nowhere")
    given = dict(text.split("=", 1) for text in overrides)
    assert given["deployment.metrics"] == metrics != given["deployment.line_listen"] == given["deployment.line_address"]
    own = ["deployment.metrics=host:1", "deployment.line=flower"]
    assert completed(own, tmp_path / "nowhere") == (own, "host:1")
    assert completed(["deployment.metrics=null"], tmp_path / "nowhere")[1] == ""
