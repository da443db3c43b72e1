"""Devices that exchange maps over the wire give one program's outputs to the bit, and refuse what they may not get."""

import dataclasses
import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fsl.errors import ConfigError, RunError, TrustError, WireError
from fsl.inference.separable import LocalGroup, SeparableDevice, save_devices, separable_part, sign_part
from fsl.inference.separable.group_records import GroupStages, maps_record, maps_record_bytes
from fsl.inference.separable.group_terms import GroupTerms
from fsl.inference.serving import ServingGrant, check_grant, sign_grant
from fsl.messages import separable_pb2 as pb
from fsl.messages.inference_records import record
from fsl.wire.options import Certificates, Limits
from tests.helpers.separated import divided, images, served

KEY = Ed25519PrivateKey.generate()


def pair(**options):
    """Two devices of a network of two, not connected."""
    model = divided(2)
    return [SeparableDevice(separable_part(model, number), **options) for number in range(2)]


@pytest.mark.parametrize("links", ["all", "some", "none"])
def test_four_devices_give_the_outputs_of_one_program_to_the_bit(links):
    model = divided(4, links)
    with served(model) as group:
        for seed, rows in ((1, 5), (2, 1), (3, 8)):
            given = images(rows, seed)
            assert torch.equal(group.first.answer(given), model.grouped(given))
    assert group.ends == {1: 3, 2: 3, 3: 3}


@pytest.mark.parametrize("links", ["all", "some", "none"])
def test_the_bytes_on_the_wire_are_those_of_the_formula(links):
    """Of values by the formula, and of records with their headers as counted without sending any."""
    model = divided(4, links)
    with served(model) as group:
        group.first.answer(images(5))
        group.first.answer(images(5))
    size = model.bytes_of(rows=5)
    assert sum(one.counts.value_bytes for one in group.devices) == 2 * size.total
    assert sum(sum(n for s, n in one.counts.values.items() if 0 < s < 7) for one in group.devices) == 2 * size.maps
    stages = GroupStages(model.plan, torch.float32)
    counts = [3, *(model.gates.tensor().sum((1, 2)) - 4).tolist(), 3]
    records = sum(count * maps_record_bytes(stages, stage, 5) for stage, count in enumerate(counts))
    assert sum(one.counts.records for one in group.devices) == 2 * records


@pytest.mark.slow
def test_processes_give_the_outputs_of_one_program_to_the_bit(tmp_path):
    model = divided(2)
    save_devices(tmp_path / "devices", model)
    threads = torch.get_num_threads()
    with LocalGroup(tmp_path / "devices", patience=60.0) as group:
        assert len(set(group.pids)) == 2
        assert torch.equal(group.answer(images()), model.grouped(images()))
    assert torch.get_num_threads() == threads
    assert group._processes[0]._process.returncode == 0


# Who takes part.


def test_over_tls_with_tokens_devices_answer(encrypted):
    model = divided(2)
    tls = Certificates(*(Path(encrypted["edge_tls"][name]) for name in ("ca", "cert", "cert-key")))
    digest = model.digest()

    def token(number):
        return sign_part(KEY, device=number, digest=digest, expires=time.time() + 60)

    with served(model, certificates=tls, token=token, token_keys=[KEY.public_key()]) as group:
        assert torch.equal(group.first.answer(images()), model.grouped(images()))


def test_a_token_of_another_device_lets_nobody_in():
    model = divided(2)
    digest = model.digest()
    first, second = (
        SeparableDevice(
            separable_part(model, number),
            token=sign_part(KEY, device=0, digest=digest, expires=time.time() + 60),
            token_keys=[KEY.public_key()],
        )
        for number in range(2)
    )
    with first, second, pytest.raises(WireError, match="which is not this part of this network"):
        second.connect({0: first.address}, 5)


def a_part(digest, seconds):
    return sign_part(KEY, device=1, digest=digest, expires=time.time() + seconds)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (lambda digest: b"", "was not signed for a separable network"),
        (lambda digest: a_part("0" * 64, 60), "which is not this part of this network"),
        (lambda digest: a_part(digest, -5), "has expired 5 s ago"),
        (
            lambda digest: sign_grant(KEY, ServingGrant(f"separable device 1 of {digest[:32]}", time.time() + 60)),
            "was not signed for a separable network",
        ),
    ],
    ids=["none", "another network", "expired", "for inference"],
)
def test_a_device_without_a_token_for_its_part_is_refused(token, said):
    model = divided(2)
    first = SeparableDevice(separable_part(model, 0), token_keys=[KEY.public_key()])
    second = SeparableDevice(separable_part(model, 1), token=token(model.digest()))
    with first, second, pytest.raises(WireError, match=said):
        second.connect({0: first.address}, 5)


def test_a_token_for_a_part_lets_nobody_ask_an_edge():
    with pytest.raises(TrustError, match="was not signed for inference"):
        check_grant(a_part("0" * 64, 60), [KEY.public_key()], 0.0)


def test_a_device_whose_first_peer_has_no_token_refuses_it():
    model = divided(2)
    token = sign_part(KEY, device=1, digest=model.digest(), expires=time.time() + 60)
    first = SeparableDevice(separable_part(model, 0))
    second = SeparableDevice(separable_part(model, 1), token=token, token_keys=[KEY.public_key()])
    with first, second, pytest.raises(TrustError, match="was not signed"):
        second.connect({0: first.address}, 5)


def test_a_device_of_other_gates_is_refused():
    other = divided(2, "all")
    first, second = SeparableDevice(separable_part(divided(2), 0)), SeparableDevice(separable_part(other, 1))
    with first, second, pytest.raises(WireError, match="weights or gates differ; give both folders of one save"):
        second.connect({0: first.address}, 5)


class OldTerms(GroupTerms):
    def greeting(self):
        said = pb.GroupGreeting(
            protocol=3, version="0.1.0", model=self.digest, device=self.device, devices=2, token=self.token
        )
        return record(pb.ToGroup(greeting=said))


def test_a_device_of_another_version_is_refused():
    first, second = pair()
    terms = second._door._terms
    second._door._terms = OldTerms(**{one.name: getattr(terms, one.name) for one in dataclasses.fields(terms)})
    with first, second, pytest.raises(WireError, match=r"device 1 at .* runs fsl 0\.1\.0 \(protocol 3\)"):
        second.connect({0: first.address}, 5)


def test_addresses_of_another_device_are_refused():
    model = divided(4)
    devices = [SeparableDevice(separable_part(model, number)) for number in (0, 1, 2)]
    with ExitStack() as stack:
        for one in devices:
            stack.enter_context(one)
        with pytest.raises(WireError, match="says that it is device 1; give each device's own address"):
            devices[2].connect({0: devices[1].address, 1: devices[1].address}, 5)


# Who is absent, late, or gone.


def test_an_absent_device_is_one_line():
    first, second = pair()
    with first, second:
        where = second.address
        first.close()
        with pytest.raises(RunError, match=r"device 0 at .* cannot be reached within 0\.3 s"):
            second.connect({0: first.address}, 0.3)
        assert where
    first, second = pair()
    with first, second, pytest.raises(RunError, match=r"device 1 did not come within 0\.3 s"):
        first.connect({}, 0.3)


def test_who_waits_for_others_hears_that_one_has_ended():
    model = divided(4)
    first, second = (SeparableDevice(separable_part(model, number)) for number in range(2))
    ends = []

    def wait():
        with pytest.raises(RunError) as error:
            first.connect({}, 30)
        ends.append(str(error.value))

    waiting = threading.Thread(target=wait)
    waiting.start()
    with first, second, pytest.raises(RunError, match=r"device 2 did not come within 0\.2 s"):
        second.connect({0: first.address}, 0.2)
    waiting.join(10)
    assert "device 1: device 2 did not come within 0.2 s" in ends[0]


def test_a_silent_listener_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as silent, pair(limits=Limits(handshake_seconds=0.3))[1] as second:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RunError, match="takes the stream and says nothing"):
            second.connect({0: where}, 5)


def test_a_late_device_ends_the_work_of_all_with_its_name():
    released = threading.Event()
    with served(divided(4, "all"), patience=0.5) as group:
        late = group.devices[2]
        real = late._computed
        late._computed = lambda given: released.wait(20) and real(given)
        with pytest.raises(RunError, match=r"device 2 did not send its maps for 'block1.body.0' within 0.5 s"):
            group.first.answer(images())
        released.set()
    assert "did not send its maps for 'block1.body.0'" in str(group.ends[1])
    assert isinstance(group.ends[2], RunError)
    with pytest.raises(RunError, match=r"device 0 has ended|device 2 did not send"):
        group.first.answer(images())


def test_a_device_that_is_gone_ends_the_work_of_all():
    with served(divided(4, "all")) as group:
        group.devices[3]._stop("the power is out")
        with pytest.raises(RunError, match="device 3: the power is out"):
            group.first.answer(images())


def test_a_device_that_nobody_asks_ends_by_itself():
    first, second = pair()
    with first, second:
        meeting = threading.Thread(target=first.connect, args=({},))
        meeting.start()
        second.connect({0: first.address})
        meeting.join(10)
        with pytest.raises(RunError, match=r"device 0 did not send the images within 0\.2 s"):
            second.serve(idle_seconds=0.2)


# What may not come.


def nan(device):
    def send(stage, receivers, values):
        type(device)._send(device, stage, receivers, torch.full_like(values, torch.nan))

    return send


def wider(device):
    def send(stage, receivers, values):
        type(device)._send(device, stage, receivers, torch.cat([values, values], 1))

    return send


def shorter(device):
    def send(stage, receivers, values):
        type(device)._send(device, stage, receivers, values[:1])

    return send


def doubles(device):
    def send(stage, receivers, values):
        type(device)._send(device, stage, receivers, values.double())

    return send


def twice(device):
    def send(stage, receivers, values):
        for _ in range(2):
            type(device)._send(device, stage, receivers, values)

    return send


def early(device):
    def send(stage, receivers, values):
        device._request += 7
        type(device)._send(device, stage, receivers, values)

    return send


def raw(data):
    def lie(device):
        def send(stage, receivers, values):
            device._network.call(device._door.send, (0,), data)

        return send

    return lie


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (nan, "its maps for 'block1.body.0' came with values that are not finite"),
        (wider, r"its maps for 'block1.body.0' came as torch.float32 of shape \(5, 16, 16, 16\)"),
        (shorter, "device 1 sent maps of 1 rows, and the request has 5"),
        (doubles, "came as torch.float64 of shape"),
        (twice, "of request 1, and this device is at request 1"),
        (early, "of request 8, and this device is at request 1"),
        (raw(maps_record(1, 0, torch.zeros(5, 3, 16, 16))), "it sends the images, which the gates do not say"),
        (raw(maps_record(1, 99, torch.zeros(5, 3, 16, 16))), "stage 99 of request 1 is none of this network"),
        (raw(b"\xff" * 64), "a frame is above the"),
        (raw(b"\x04\0\0\0\0\0\0\0junk"), "does not begin with a message of fsl's protocol"),
        (raw(record(pb.ToGroup(greeting=pb.GroupGreeting()))), "a greeting has no place in a stream here"),
        (raw(record(pb.ToGroup())), "a message of no kind has no place in a stream here"),
    ],
)
def test_a_device_that_sends_what_it_may_not_ends_the_work_with_its_name(lie, said):
    with served(divided(2, "all"), patience=5.0) as group:
        group.devices[1]._send = lie(group.devices[1])
        with pytest.raises(WireError, match=said) as error:
            group.first.answer(images())
    assert "device 1" in str(error.value)
    assert "\n" not in str(error.value)


def test_strangers_at_the_door_disturb_nobody():
    with served(divided(2)) as group:
        host, _, port = group.first.address.rpartition(":")
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"fsl steps 1\n" + b"\0" * 32, b"", b"\xff" * 4096):
            with socket.create_connection((host, int(port)), timeout=5) as stranger:
                stranger.sendall(said)
                with suppress(OSError):  # the door may have closed before all was read
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
        assert group.first.answer(images()).shape == (5, 10)


# What a user asks.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(2, 3, 8, 8), r"images of shape \(2, 3, 8, 8\): give \(1 to 4, 3, 16, 16\)"),
        (torch.zeros(5, 3, 16, 16), r"images of shape \(5, 3, 16, 16\): give \(1 to 4, 3, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), "images are torch.float64"),
    ],
)
def test_images_that_do_not_fit_are_refused_and_the_next_are_answered(given, said):
    with served(divided(2), rows=4) as group:
        with pytest.raises(ConfigError, match=said):
            group.first.answer(given)
        assert group.first.answer(images(4)).shape == (4, 10)


def test_only_device_0_is_asked_and_only_the_others_serve():
    first, second = pair()
    with first, second:
        with pytest.raises(ConfigError, match="device 1 has no images; ask device 0"):
            second.answer(images())
        with pytest.raises(ConfigError, match="device 0 asks, and does not serve"):
            first.serve()
        with pytest.raises(ConfigError, match="device 1 needs the address of device 0"):
            second.connect({})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "without TLS an edge serves only its own machine"),
        ({"listen": "nowhere"}, "listen=nowhere: give host:port"),
        ({"patience": 0.0}, "patience=0.0, rows=256"),
        ({"certificates": Certificates()}, "needs cert and cert-key"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        SeparableDevice(separable_part(divided(2), 0), **options)


def test_without_tls_no_other_machine_is_reached():
    with pair()[1] as second, pytest.raises(ConfigError, match="is another machine, and without TLS"):
        second.connect({0: "192.0.2.1:9090"})
