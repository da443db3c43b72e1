"""The endpoint that cloud, edges and devices share: metrics, health, its port, and who may import its library."""

import errno
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fsl.deployment import folder_health
from fsl.deployment.folder_health import why_unwritable
from fsl.deployment.local.scraped_metrics import scrape_metrics
from fsl.deployment.metrics_endpoint import MetricsEndpoint
from fsl.errors import ConfigError
from fsl.installed import __version__
from tests.helpers.places import ROOT


def endpoint(folder, address="127.0.0.1:0", **more):
    return MetricsEndpoint("metrics", address, CollectorRegistry(), "edge", "state", folder, **more)


def ask(one, path):
    """The status, the type and the text of an answer."""
    try:
        answer = urllib.request.urlopen(f"http://{one.address}{path}", timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


@pytest.fixture
def one(tmp_path):
    one = endpoint(tmp_path, about=lambda: {"round": 3})
    yield one
    one.close()


def test_a_process_that_can_write_is_healthy(one, tmp_path):
    status, kind, text = ask(one, "/health")
    assert (status, kind) == (200, "application/json")
    assert json.loads(text) == {"status": "ok", "role": "edge", "version": __version__, "round": 3}
    assert list(tmp_path.iterdir()) == []
    told = scrape_metrics(one.address)
    assert told["fsl_healthy"] == told["fsl_info"] == 1
    assert told["fsl_disk_free_bytes"] > 0
    assert ask(one, "/elsewhere")[0] == 404


def test_a_folder_that_is_gone_is_a_503_with_its_reason(tmp_path):
    folder = tmp_path / "state"
    folder.mkdir()
    one = endpoint(folder)
    folder.rmdir()
    try:
        status, _, text = ask(one, "/health")
        assert (status, json.loads(text)["status"]) == (503, "ill")
        assert json.loads(text)["reason"] == f"state={folder} cannot be written (No such file or directory)"
        assert scrape_metrics(one.address)["fsl_healthy"] == 0
    finally:
        one.close()


def test_a_disk_that_is_full_or_failed_is_named(tmp_path, monkeypatch):
    assert why_unwritable("state", tmp_path) == ""
    monkeypatch.setattr(folder_health, "free_bytes", lambda _: 10_000_000)
    assert why_unwritable("state", tmp_path) == f"state={tmp_path}: its disk is full, 10 MB are left"

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert why_unwritable("state", tmp_path) == f"state={tmp_path} cannot be written (Read-only file system)"


def test_a_port_that_is_taken_is_one_line_and_is_free_after_the_end(tmp_path):
    one = endpoint(tmp_path)
    with pytest.raises(ConfigError, match=rf"^metrics=127.0.0.1:{one.port}: .*in use.*name a free host:port$"):
        endpoint(tmp_path, one.address)
    one.close()
    assert scrape_metrics(one.address) == {}
    endpoint(tmp_path, one.address).close()


@pytest.mark.parametrize("address", ["127.0.0.1:70000", "no.such.host.invalid:1"])
def test_an_address_that_cannot_be_is_one_line(address, tmp_path):
    with pytest.raises(ConfigError, match=f"^metrics={address}: metrics cannot be served there"):
        endpoint(tmp_path, address)


def test_it_listens_on_ipv6(tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    one = endpoint(tmp_path, "[::1]:0")
    try:
        assert scrape_metrics(one.address)["fsl_info"] == 1
    finally:
        one.close()


def test_nothing_but_the_deployment_and_the_serving_counts_know_prometheus():
    users = {path for path in (ROOT / "fsl").rglob("*.py") if "import prometheus" in _imports(path)}
    users |= {path for path in (ROOT / "fsl").rglob("*.py") if "from prometheus" in _imports(path)}
    assert users
    elsewhere = {path.relative_to(ROOT / "fsl") for path in users if "deployment" not in path.parts}
    assert elsewhere == {Path("inference/serving/serving_metrics.py")}


def _imports(path):
    return "\n".join(line.strip() for line in path.read_text().splitlines() if "prometheus_client" in line)
