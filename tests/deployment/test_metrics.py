"""What edges and devices tell Prometheus and their logs, against what the round came to."""

import io
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass, field

import grpc
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from fsl.strategies import PSL, CycleSL, FedAvg, SplitFedV1

from fsl.codecs import Identity
from fsl.deployment.local.scraped_metrics import parse_metrics, scrape_metrics
from fsl.deployment.logs import FIELDS, JsonFormatter
from fsl.deployment.node.node_host import NodeHost
from fsl.deployment.node.node_metrics import NodeMetrics
from fsl.deployment.node.node_settings import NodeSettings
from fsl.errors import ConfigError
from fsl.messages import messages_pb2 as pb
from fsl.messages.frames import frame
from fsl.messages.record_names import CONFIG, SETUP
from fsl.round.edge_server import EdgeServer
from fsl.trainers import Replicated
from fsl.wire.device.invitation import Invitation
from fsl.wire.device.line import Ear, Uplink
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.expected import Expected
from fsl.wire.options import METHOD, Limits, Patience
from fsl.wire.tokens import Claims, Signer, fingerprint
from tests.helpers.flaky import At, Weather
from tests.helpers.node_setups import EDGE, setup_of
from tests.helpers.places import ROOT
from tests.helpers.runs import run
from tests.helpers.wired import Wired, WiredGrid

pytestmark = pytest.mark.slow

CODEC = "fsl.codecs.Identity"
LIMITS = Limits(handshake_seconds=1.0)


class ScrapedGrid(WiredGrid):
    """Its nodes' metrics are read before they go."""

    def __init__(self, workload, backend, devices):
        self.metrics = []
        super().__init__(workload, backend, devices)
        self.told = backend.told

    def _host(self, workload, backend, config, store):
        super()._host(workload, backend, config | {"metrics": "127.0.0.1:0"}, store)

    def _meters(self, settings):
        self.metrics.append((settings.role, NodeMetrics(settings)))
        return self.metrics[-1][1].meters

    def release(self):
        for role, metrics in self.metrics:
            self.told.setdefault(role, []).append(scrape_metrics(metrics.address))
        super().release()
        for _, metrics in self.metrics:
            metrics.close()


@dataclass(frozen=True)
class Scraped(Wired):
    told: dict = field(default_factory=dict)

    def open(self, workload, nodes):
        return ScrapedGrid(workload, self, workload.partition.devices)

    def sums(self, role):
        """What all nodes of a role told, added up."""
        return {name: sum(told[name] for told in self.told[role]) for name in self.told[role][0]}


@pytest.mark.parametrize("strategy", [SplitFedV1(), PSL(), CycleSL(window=2)], ids=lambda s: type(s).__name__)
def test_metrics_of_edges_and_devices_are_those_of_their_rounds(strategy, tmp_path):
    backend = Scraped(folder=tmp_path)
    done = run(strategy, devices=4, edges=2, batch_size=10, backend=backend)
    assert {role: len(told) for role, told in backend.told.items()} == {"edge": 2, "device": 2}
    steps = 2 * 4 * 3  # rounds, devices, batches of 10 out of 24 rows
    edges, devices = backend.sums("edge"), backend.sums("device")
    for end, told in (("edge", edges), ("device", devices)):
        assert told[f"fsl_{end}_up_bytes_total"] == sum(row["up_bytes"] for row in done.metrics)
        assert told[f"fsl_{end}_down_bytes_total"] == sum(row["down_bytes"] for row in done.metrics)
        assert told[f"fsl_{end}_steps_total"] == told[f"fsl_{end}_step_seconds_count"] == steps
        assert told[f"fsl_{end}_step_seconds_sum"] > 0
        assert told[f"fsl_{end}_rounds_total"] == told[f"fsl_{end}_round"] == 2 * 2
        assert told["fsl_healthy"] == 2
    assert edges["fsl_edge_sessions_closed_total"] == devices["fsl_device_finished_total"] == 2 * 4
    assert edges["fsl_edge_sessions"] == edges["fsl_edge_inbox_events"] == 0
    assert devices["fsl_device_attending"] == devices["fsl_device_reconnects_total"] == 0
    assert devices["fsl_device_round_seconds_count"] == 2 * 2
    absent = ("fsl_edge_devices_lost_total", "fsl_edge_handshakes_refused_total", "fsl_device_lost_total")
    assert not {*absent, "fsl_device_epsilon"} & {*edges, *devices}


def test_a_node_of_both_roles_tells_of_both(tmp_path):
    backend = Scraped(folder=tmp_path, both=True, edges=1, device_nodes=1)
    run(SplitFedV1(), devices=2, edges=1, rounds=1, backend=backend)
    told = backend.sums("both")
    assert told["fsl_edge_sessions_closed_total"] == told["fsl_device_finished_total"] == 2
    assert told["fsl_edge_steps_total"] == told["fsl_device_steps_total"] > 0


def test_devices_without_an_edge_are_counted(tmp_path):
    backend = Scraped(folder=tmp_path, edges=1)
    done = run(FedAvg(), devices=4, batch_size=10, backend=backend)
    told = backend.sums("device")
    assert told["fsl_device_finished_total"] == sum(row["devices"] for row in done.metrics) == 8
    assert told["fsl_device_steps_total"] == 2 * 4 * 3
    assert told["fsl_device_rounds_total"] == 4
    assert told["fsl_device_attending"] == told["fsl_device_up_bytes_total"] == 0


def test_a_session_that_comes_back_is_counted(tmp_path, monkeypatch):
    Weather(cuts=[At(0, "says", "upload", 1), At(1, "hears", "reply", 0)]).over(monkeypatch)
    backend = Scraped(folder=tmp_path, edges=1, device_nodes=1)
    run(SplitFedV1(), devices=2, rounds=1, batch_size=10, backend=backend)
    told = backend.sums("device")
    assert told["fsl_device_reconnects_total"] == 2
    assert told["fsl_device_steps_total"] == told["fsl_device_step_seconds_count"] == 2 * 5


class Edge:
    """A round of devices 0 and 1 at an edge that counts."""

    def __init__(self, folder):
        self.signer = Signer()
        self.metrics = NodeMetrics(edge_settings(folder, metrics="127.0.0.1:0"))
        self.meter = self.metrics.meters.edge
        self.door = EdgeDoor(0, "127.0.0.1:0", None, folder / "sessions.tsv", LIMITS, self.meter)
        self.admission = Admission("run", 1, 0, 1, self.signer.public_key, {0, 1}, CODEC, CODEC)

    def serve(self, patience):
        trainer = Replicated()
        trainer.open = trainer.abandon = lambda *_: None
        expected = Expected(torch.zeros(2, 4), range(1, 9), 4)
        server = EdgeServer(0, trainer, Identity, Identity)
        edge_round = EdgeRound(server, self.admission, patience, expected, self.meter)
        self.door.begin(self.admission)
        return edge_round.serve()

    def scrape(self):
        with urllib.request.urlopen(f"http://{self.metrics.address}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def close(self):
        self.door.close()
        self.metrics.close()


@pytest.fixture
def edge(tmp_path):
    edge = Edge(tmp_path)
    yield edge
    edge.close()


def test_lost_devices_are_counted_by_reason(edge):
    uplink = Uplink(Ed25519PrivateKey.generate(), None, Limits())
    patience = Patience(join=1.0, straggler=0.2)
    claims = Claims("run", 1, 0, (0,), 5, 5, 1, fingerprint(uplink.public_key))
    address = f"127.0.0.1:{edge.door.port}"
    uplink.attend(Invitation(0, 0, address, edge.signer.sign(claims), CODEC, CODEC), Ear(), patience)
    serving = threading.Thread(target=edge.serve, args=(patience,))
    serving.start()
    serving.join(30)
    uplink.close()
    text = edge.scrape()
    assert 'fsl_edge_devices_lost_total{reason="straggler"} 1.0' in text
    assert 'fsl_edge_devices_lost_total{reason="absent"} 1.0' in text
    assert 'fsl_edge_rounds_total{outcome="done"} 1.0' in text
    told = parse_metrics(text)
    assert told["fsl_edge_sessions"] == told["fsl_edge_sessions_closed_total"] == 0


def test_refused_handshakes_are_counted_by_status_code(edge):
    def say(message):
        with grpc.insecure_channel(f"127.0.0.1:{edge.door.port}") as channel:
            answers = channel.stream_stream(METHOD)(iter([frame(message)]), timeout=10)
            with pytest.raises(grpc.RpcError) as refused:
                next(answers)
            return refused.value.code()

    assert say(pb.ToEdge(open=pb.Open(token=b"x"))) is grpc.StatusCode.UNAVAILABLE
    edge.door.begin(edge.admission)
    assert say(pb.ToEdge(open=pb.Open(token=b"x"))) is grpc.StatusCode.UNAUTHENTICATED
    assert say(pb.ToEdge(proof=pb.Proof())) is grpc.StatusCode.INVALID_ARGUMENT
    text = edge.scrape()
    for code in ("UNAVAILABLE", "UNAUTHENTICATED", "INVALID_ARGUMENT"):
        assert f'fsl_edge_handshakes_refused_total{{code="{code}"}} 1.0' in text


def edge_settings(folder, **more):
    config = {"role": "edge", "listen": "127.0.0.1:0", "insecure": True, "state": str(folder)}
    return NodeSettings.read(config | more)


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in [name for name in sys.modules if name.startswith("fsl.deployment") and name.endswith("_metrics")]:
        monkeypatch.delitem(sys.modules, name)
    content = RecordDict({CONFIG: ConfigRecord({SETUP: setup_of().to_json()})})
    host = NodeHost()
    with pytest.raises(ConfigError, match=r"^node configuration: metrics=127.0.0.1:0: .*pip install 'fsl-flower\["):
        host.answer("query", 1, content, {**EDGE, "state": str(tmp_path), "metrics": "127.0.0.1:0"})
    host.close()


def test_the_library_is_imported_only_where_a_node_is_to_count():
    imports = "import sys, fsl.deployment.node.node_host, fsl.simulations.flower_cloud"
    code = f"{imports}; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


@pytest.mark.parametrize("value", ["9000", "localhost:", ":9000", "localhost:http", "localhost:65536"])
def test_a_wrong_address_is_refused(value, tmp_path):
    with pytest.raises(ConfigError, match=r"metrics=.*host:port"):
        edge_settings(tmp_path, metrics=value)


# Logs.


@pytest.fixture
def lines():
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("fsl")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in handler.stream.getvalue().splitlines()]
    logger.setLevel(before)
    logger.removeHandler(handler)


def told(lines, logger, words):
    """Who is said of to have this, as (round, edge, device)."""
    found = [line for line in lines if line["logger"] == logger and words in line["message"]]
    return sorted((line["round"], line.get("edge", -1), line.get("device", -1)) for line in found)


def test_logs_tell_a_round_with_its_run_edge_and_devices(lines, tmp_path):
    run(SplitFedV1(), devices=4, edges=2, rounds=1, backend=Wired(folder=tmp_path))
    said = lines()
    everyone = [(1, device % 2, device) for device in range(4)]
    for words in ("session of device", "closed"):
        logger = "fsl.wire.edge.door" if words.startswith("session") else "fsl.wire.edge.edge_round"
        found = told(said, logger, words)
        assert [one for one in found if one[2] >= 0] == sorted(everyone)
    for words in ("has its session", "closed"):
        assert told(said, "fsl.wire.device.device_round", words) == sorted(everyone)
    for words in ("began with 2 devices", "ended: 2 devices closed, 0 lost"):
        assert told(said, "fsl.wire.edge.edge_round", words) == [(1, 0, -1), (1, 1, -1)]
    assert len(told(said, "fsl.wire.device.device_round", "ended: 2 devices finished, 0 lost")) == 2
    assert all(line["run"] for line in said if "round" in line)
    assert all("127.0.0.1" in line["peer"] for line in said if line["logger"] == "fsl.wire.edge.door")


def test_a_refusal_is_logged_with_its_peer(edge, lines):
    with grpc.insecure_channel(f"127.0.0.1:{edge.door.port}") as channel:
        answers = channel.stream_stream(METHOD)(iter([frame(pb.ToEdge(open=pb.Open()))]), timeout=10)
        with pytest.raises(grpc.RpcError):
            next(answers)
    (line,) = [line for line in lines() if "refused" in line["message"]]
    assert line["edge"] == 0
    assert "127.0.0.1" in line["peer"]


def test_a_json_line_has_the_exception_and_nothing_unknown():
    try:
        raise ValueError("no such thing")
    except ValueError:
        record = logging.LogRecord("fsl", logging.ERROR, "", 1, "it %s\nhard", ("failed",), sys.exc_info())
    record.device, record.other = 3, "unknown"
    (line,) = JsonFormatter().format(record).splitlines()
    said = json.loads(line)
    assert (said["level"], said["message"], said["device"]) == ("error", "it failed\nhard", 3)
    assert "ValueError: no such thing" in said["exception"]
    assert set(said) == {"time", "level", "logger", "message", "device", "exception"}
    assert set(FIELDS) == {"run", "round", "edge", "device", "peer"}


@pytest.mark.parametrize(("form", "begins"), [("json", '{"time": "'), ("text", "20"), ("", "20")])
def test_fsl_log_names_the_form(form, begins):
    code = "import logging; from fsl.deployment.logs import set_up; set_up(); logging.getLogger('fsl').info('hello')"
    environment = {**os.environ, "FSL_LOG": form}
    folder = ROOT
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=folder)
    (line,) = [line for line in done.stderr.splitlines() if "hello" in line]
    assert line.startswith(begins)
