"""A SuperNode whose clock is wrong ends, and its last line says so."""

import os
import re
import sys
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse, RegisterNodeFleetResponse

from fsl.deployment.local.local_plan import free_ports
from fsl.deployment.processes import end, is_alive, start, wait_until
from tests.helpers.places import ROOT


class SuperLink(BaseHTTPRequestHandler):
    """Takes what a node signs until `refuses`, and its clock is 10 s behind."""

    protocol_version = "HTTP/1.1"
    refuses = ""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        call = self.path.rpartition("/")[2]
        answers = {"register-node": RegisterNodeFleetResponse(), "activate-node": ActivateNodeResponse(node_id=7)}
        status, body = (200, answers[call].SerializeToString()) if call in answers else (401, b"")
        if call == self.refuses:
            status, body = 401, b""
        self.send_response_only(status)
        self.send_header("Date", format_datetime(datetime.now(UTC) - timedelta(seconds=10), usegmt=True))
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keep quiet."""


@pytest.mark.slow
@pytest.mark.parametrize("refuses", ["register-node", "pull-messages"])
def test_a_clock_that_is_ahead_is_the_last_that_a_supernode_says(tmp_path, refuses):
    handler = type("Refusing", (SuperLink,), {"refuses": refuses})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        words = ["--superlink", address, "--insecure", "--port", str(free_ports(1)[0])]
        environment = {"PYTHONPATH": str(ROOT), "FLWR_HOME": str(tmp_path), "FLWR_DISABLE_UPDATE_CHECK": "1"}
        log, command = tmp_path / "log", [sys.executable, "-m", "fsl.deployment.node.supernode", *words]
        process = start("node", command, log, environment)
        try:
            assert wait_until(lambda: not is_alive(process), 120)
            assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 1
        finally:
            end([process])
            server.shutdown()
    last = log.read_text().splitlines()[-1]
    told = r"fsl-supernode: this machine's clock is 1\d s ahead of the SuperLink's, which takes 5 s ahead"
    assert re.search(told, last)  # 10, and what passes until it asks
