"""A machine measures a model for who asks over the network, and refuses what it cannot measure, with the reason."""

import contextlib
import threading
import time

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fsl.simulations.profiling.profile_options import read_options

from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.deployment.processes import wait_until
from fsl.errors import ConfigError, RunError, WireError
from fsl.inference.serving import ProfileService, ServingGrant, ask_profile, profile_service, sign_grant
from fsl.installed import __version__
from fsl.messages import inference_pb2 as pb
from fsl.messages.strict_json import to_json
from fsl.messages.versions import PROTOCOL
from fsl.wire.options import PROFILE_METHOD, Certificates
from tests.helpers.served import batch, served

POINTS = served("MLP")
FEW = {"repetitions": 2, "warm_up": 0, "checks": 0}


def rows(count):
    return batch("MLP", count)


@pytest.fixture
def service():
    with ProfileService(POINTS, rows, power_active_watts=6.4) as running:
        yield running


def test_a_machine_measures_for_who_asks(service):
    found = ask_profile(service.address, served("MLP"), batch=2, **FEW)
    assert (found.names, found.batch, found.repetitions) == (POINTS.names, 2, 2)
    assert found.digest == POINTS.digest()
    assert found.power_active_watts == 6.4


def test_of_some_points_alone_where_they_are_named(service):
    name = POINTS.cuts[0]
    assert ask_profile(service.address, POINTS, names=[name], **FEW).names == ("input", name, "output")


def test_over_tls_and_with_a_token(tmp_path):
    issue(tmp_path, identities(1, 1))
    files, key = CertificateFolder(tmp_path), Ed25519PrivateKey.generate()
    edge = Certificates(certificate=files.certificate("edge-0"), key=files.key("edge-0"))
    with ProfileService(POINTS, rows, certificates=edge, token_keys=[key.public_key()]) as service:
        token = sign_grant(key, ServingGrant("me", time.time() + 60))
        certificates = Certificates(ca=files.ca)
        assert ask_profile(service.address, POINTS, token=token, certificates=certificates, **FEW).batch == 1
        expired = sign_grant(key, ServingGrant("me", time.time() - 60))
        for other, why in ((b"", "not signed"), (expired, "expired")):
            with pytest.raises(ConfigError, match=why):
                ask_profile(service.address, POINTS, token=other, certificates=certificates, **FEW)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"points": served("MLP", seed=1)}, "class or weights differ"),
        ({"names": ["fc9"]}, "point 'fc9' is not known here; there are input"),
        ({"repetitions": 10**6}, "repetitions=1000000: of another machine one asks for 1 to 1000"),
        ({"batch": 0}, "batch=0"),
        ({"batch": 10**12}, "batch=1000000000000"),
        ({"warm_up": -1}, "warm_up=-1"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(service, asked, why):
    options = {"points": POINTS, **FEW} | asked
    with pytest.raises(ConfigError, match=why):
        ask_profile(service.address, options.pop("points"), **options)


def test_one_measurement_at_a_time(service, monkeypatch):
    began, goes_on = threading.Event(), threading.Event()
    real = profile_service.measure

    def slowly(*arguments, **options):
        began.set()
        assert goes_on.wait(30)
        return real(*arguments, **options)

    monkeypatch.setattr(profile_service, "measure", slowly)
    first = threading.Thread(target=ask_profile, args=(service.address, POINTS), kwargs=FEW)
    first.start()
    assert began.wait(30)
    with pytest.raises(RunError, match="measures for somebody else"):
        ask_profile(service.address, POINTS, **FEW)
    goes_on.set()
    first.join(30)
    assert ask_profile(service.address, POINTS, **FEW).batch == 1


LONG = {"repetitions": 1000, "warm_up": 1000, "batch": 1024, "checks": 100}


def test_a_measurement_ends_with_who_asked_for_it(service):
    with pytest.raises(RunError, match=r"[Dd]eadline"):
        ask_profile(service.address, POINTS, wait=0.5, **LONG)
    assert wait_until(lambda: not service._measuring.locked(), 30)
    assert ask_profile(service.address, POINTS, **FEW).batch == 1


def test_a_service_that_closes_ends_its_measurement():
    with ProfileService(POINTS, rows) as service:
        asking = threading.Thread(target=suppressed, args=(service.address,))
        asking.start()
        assert wait_until(service._measuring.locked, 30)
    assert wait_until(lambda: not service._measuring.locked(), 30)
    asking.join(30)
    assert not asking.is_alive()


def suppressed(address):
    with contextlib.suppress(RunError):
        ask_profile(address, POINTS, **LONG)


def test_sizes_are_refused_there_too(service):
    asked = pb.AskedProfile(protocol=PROTOCOL, version=__version__, model=POINTS.digest(), batch=10**6, repetitions=1)
    with grpc.insecure_channel(service.address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(PROFILE_METHOD)(asked.SerializeToString(), timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_fails_there_is_said_without_its_text(service, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("a secret")

    monkeypatch.setattr(profile_service, "measure", fails)
    with pytest.raises(RunError, match="could not be measured; that machine's log says why"):
        ask_profile(service.address, POINTS, **FEW)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"x" * (1 << 17)], ids=["nothing", "noise", "too much"])
def test_hostile_bytes_get_a_status(service, data):
    with grpc.insecure_channel(service.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(PROFILE_METHOD)(data, timeout=30)
        codes = (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        assert refused.value.code() in codes
    assert ask_profile(service.address, POINTS, **FEW).batch == 1


class Lying(ProfileService):
    """Answers what it is told to."""

    def __init__(self, told):
        self._told = told
        super().__init__(POINTS, rows)

    def _measured(self, data, asked_still):
        return self._told


OTHER = pb.ToldProfile(protocol=PROTOCOL, version=__version__)


@pytest.mark.parametrize("told", [b"\xff", OTHER.SerializeToString()], ids=["noise", "no profile"])
def test_what_is_no_profile_is_refused_by_who_asks(told):
    with Lying(told) as service, pytest.raises(WireError, match="no profile"):
        ask_profile(service.address, POINTS, **FEW)


def test_another_model_s_profile_is_refused(service):
    found = ask_profile(service.address, POINTS, **FEW)
    with Lying(
        pb.ToldProfile(protocol=PROTOCOL, version=__version__, profile=to_json(found)).SerializeToString()
    ) as liar:
        with pytest.raises(WireError, match="another model"):
            ask_profile(liar.address, served("MLP", seed=1), **FEW)
        with pytest.raises(WireError, match="another batch"):
            ask_profile(liar.address, POINTS, batch=3, **FEW)


def test_nobody_there_and_nobody_in_time_are_said(service):
    with pytest.raises(RunError, match="gives no profile"):
        ask_profile("127.0.0.1:9", POINTS, wait=2.0, **FEW)
    with pytest.raises(RunError, match=r"[Dd]eadline"):
        ask_profile(service.address, POINTS, wait=0.001, repetitions=1000, warm_up=1000)


def test_what_is_not_encrypted_stays_on_this_machine():
    with pytest.raises(ConfigError, match="without TLS"):
        ask_profile("192.0.2.7:7000", POINTS)
    with pytest.raises(ConfigError, match="without TLS"):
        ProfileService(POINTS, rows, listen="0.0.0.0:0")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["device_at=pi"], "give host:port"),
        (["device_at=pi:99999"], "give host:port"),
        (["device_at=pi:7000", "edge_at=pi:7000", "threads=4"], "give it to fsl-serve profile"),
        (["device_at=pi:7000", "profile=x.json"], "both tell one side's profile"),
        (["ca=x"], "nobody is asked"),
        (["device_at=pi:7000", "ca=x", "insecure=true"], "nothing would be encrypted"),
        (["device_at=pi:7000", "insecure=yes"], "true or false"),
        (["edge_at=pi:7000", "edge_speed=2"], "leave one out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, why):
    with pytest.raises(ConfigError, match=why):
        read_options(given)
