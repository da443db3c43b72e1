"""Who may start runs, what a SuperNode says of a wrong clock, and that a run that was stopped ends."""

import os
import shutil
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import import_module
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flwr.app import Message
from flwr.app.error import Error

from fsl.deployment.cloud.members import Members
from fsl.deployment.cloud.stopped import ends_when_stopped
from fsl.deployment.cloud.superlink import ClosedControl, command, is_local
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.node.clock import why_refused
from fsl.errors import RunError
from fsl.flower.internals import enter_identity, exit_identity
from tests.helpers.at_once import AnswersAtOnce

NOW = datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)


def date(ahead: float) -> str:
    """The header of a server whose clock this machine's is so many seconds ahead of."""
    return format_datetime((NOW - timedelta(seconds=ahead)).replace(microsecond=0), usegmt=True)


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (6, "6 s ahead of"),
        (600, "10.0 minutes ahead of"),
        (-306, "5.1 minutes behind"),
        (-40 * 86400, "40.0 days behind"),
    ],
)
def test_a_clock_that_the_superlink_does_not_take_is_named_with_its_offset(ahead, said):
    told = why_refused(date(ahead), NOW)
    assert told.startswith(f"this machine's clock is {said} the SuperLink's")
    assert "NTP" in told


@pytest.mark.parametrize("header", [date(0), date(2), date(-200), None, "yesterday"])
def test_a_key_that_is_not_known_is_not_blamed_on_the_clock(header):
    assert "flwr supernode register" in why_refused(header, NOW)


def app() -> FastAPI:
    site = FastAPI()
    site.add_middleware(ClosedControl)

    @site.api_route("/{path:path}", methods=["GET", "POST"])
    def anything(path: str) -> str:
        return "served"

    return site


CLOSED = ["/v1/control/x", "/v1/runtime/x", "/docs", "/openapi.json", "/", "/v1/fleet", "//v1/fleet/x", "/V1/CONTROL/x"]


@pytest.mark.parametrize("path", CLOSED)
def test_from_outside_only_the_nodes_api_answers(path):
    with TestClient(app(), base_url="http://192.0.2.7:8000", client=("198.51.100.9", 5000)) as outside:
        assert outside.post(path).status_code == 403
        assert "only its own machine may start runs" in outside.post(path).text
        assert outside.post("/v1/fleet/activate-node").status_code == 200
        assert outside.get("/health").status_code == 200


@pytest.mark.parametrize("client", ["127.0.0.1", "127.0.0.9", "::1", "::ffff:127.0.0.1"])
def test_the_superlinks_own_machine_starts_runs(client):
    with TestClient(app(), client=(client, 5000)) as inside:
        assert inside.post("/v1/control/start-run").status_code == 200


def test_a_superlink_that_listens_on_one_address_reaches_itself():
    # Flower's own executor calls the address that the SuperLink was told to listen on.
    assert is_local({"client": ("192.0.2.7", 5000), "server": ("192.0.2.7", 8000)})
    assert not is_local({"client": ("192.0.2.8", 5000), "server": ("192.0.2.7", 8000)})
    assert not is_local({"client": None, "server": ("192.0.2.7", 8000)})
    assert not is_local({"client": ("localhost", 1), "server": None})


def test_what_would_let_outsiders_past_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    assert command(["--insecure"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fsl-superlink: FORWARDED_ALLOW_IPS is set")


def test_flowers_programs_are_found_beside_a_superlink_that_is_called_by_its_path(monkeypatch):
    """As a service is, from an environment that is on nobody's PATH."""
    found = []
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["fsl-superlink"])
    monkeypatch.setattr("flwr.superlink.main.create_app", None)
    flower = import_module("flwr.superlink.cli.flower_superlink")
    monkeypatch.setattr(flower, "flower_superlink", lambda: found.append(shutil.which("flower-superexec")))
    assert command([]) == 0
    assert found == [str(Path(sys.executable).parent / "flower-superexec")]
    assert os.environ["PATH"].endswith(":/nowhere")


class Grid(AnswersAtOnce):
    """Nodes 1 and 2 are online; whether the run was stopped, and who answers, is said."""

    def __init__(self, status: int | None = None, answers: dict[int, str] | None = None):
        self.status = status
        self.answers = answers or {}

    def get_node_ids(self):
        if self.status is not None:
            request = httpx.Request("POST", "https://cloud/v1/runtime/get-nodes")
            raise httpx.HTTPStatusError("no", request=request, response=httpx.Response(self.status, request=request))
        return [1, 2]

    def send_and_receive(self, messages, timeout):
        for message in messages:
            if (reason := self.answers.get(message.metadata.dst_node_id)) is not None:
                yield Message(Error(0, reason), reply_to=message)


@pytest.mark.parametrize("status", [401, 403])
def test_the_cloud_of_a_run_that_was_stopped_ends_whatever_it_is_at(status):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), ends_when_stopped(Grid(status), every=0.01):
            time.sleep(30)  # a computation that asks the SuperLink nothing
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("status", [None, 500, 503])
def test_a_superlink_that_is_busy_ends_no_run(status, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "kill", lambda *_: asked.append("killed"))
    grid = Grid(status)
    one = grid.get_node_ids
    grid.get_node_ids = lambda: (asked.append("asked"), one())
    with ends_when_stopped(grid, every=0.001):
        while len(asked) < 3:
            time.sleep(0.001)
    assert set(asked) == {"asked"}


@pytest.fixture
def identity():
    enter_identity()
    yield
    exit_identity()


@pytest.mark.usefixtures("identity")
def test_nodes_that_are_busy_are_said_to_be():
    members = Members("{}", Terms(wait=0.01, query=0.2))
    with pytest.raises(RunError, match=r"2 nodes are online .* in time \(1, 2\): they have just ended, .* or are busy"):
        members.look(Grid(), 1, 1, first=True)
    members = Members("{}", Terms(wait=0.01, query=0.2))
    with pytest.raises(RunError, match=r"; node 1: no such luck; 1 nodes are online .* \(2\)"):
        members.look(Grid(answers={1: "no such luck"}), 1, 1, first=True)


def test_no_node_at_all_is_told_what_to_do():
    grid = Grid()
    grid.get_node_ids = lambda: []
    with pytest.raises(RunError, match="start SuperNodes with role"):
        Members("{}", Terms(wait=0.01)).look(grid, 1, 1, first=True)
