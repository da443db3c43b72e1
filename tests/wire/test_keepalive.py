"""A connection that is open and carries nothing is noticed, by device and edge, and made anew."""

import pytest

from fsl.round.front_device import Device
from fsl.wire.options import KEEPALIVE, Limits, Patience, channel_options
from tests.helpers.lowlevel import HONEST, Edge, a_plan
from tests.helpers.proxy import Proxy

pytestmark = pytest.mark.slow

PATIENCE = Patience(join=20, straggler=20, answer=20)


@pytest.fixture
def proxy():
    proxy = Proxy()
    yield proxy
    proxy.close()


def test_a_silent_connection_is_given_up_after_half_a_minute():
    options = dict(channel_options(1))
    assert KEEPALIVE == 20
    assert options["grpc.keepalive_time_ms"] == 20_000
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 10_000


def test_a_round_keeps_its_devices_through_a_half_open_connection(tmp_path, proxy, monkeypatch):
    forward, swallowed = Device.forward, []

    def forwarding(device):
        if device.device == 0 and device.step == 2 and not swallowed:
            swallowed.append(True)
            proxy.swallow()
        return forward(device)

    monkeypatch.setattr(Device, "forward", forwarding)
    limits = Limits(keepalive=3.0)
    with Edge(tmp_path, a_plan(epochs=4), range(HONEST), limits=limits, patience=PATIENCE) as edge:
        proxy.to("127.0.0.1", edge.door.port)
        edge.address = f"127.0.0.1:{proxy.port}"
        _, outcome = edge.attend(tmp_path / "device", range(HONEST))
        served = edge.served()
    assert swallowed, outcome
    assert outcome.lost == served.lost == {}
    assert sorted(outcome.finished) == sorted(session.device for session in served.closed) == list(range(HONEST))
