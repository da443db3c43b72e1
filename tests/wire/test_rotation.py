"""Certificates that are replaced on the disk: new connections use them, open ones go on, and nothing is restarted."""

import asyncio
import os
import shutil
import socket
import ssl

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fsl.strategies import SplitFedV1

import fsl
from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.errors import ConfigError
from fsl.wire import pem_files
from fsl.wire.connections import Connections
from fsl.wire.edge.door import EdgeDoor
from fsl.wire.options import METHOD, Certificates, Limits
from fsl.wire.pem_files import PemFiles
from tests.helpers.runs import assert_same_result, run
from tests.helpers.tls_options import tls
from tests.helpers.wired import Wired


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch):
    monkeypatch.setattr(pem_files, "_LOOK", 0.0)


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    """Two authorities with the same names."""
    folders = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")]
    for folder in folders:
        issue(folder, identities(1, 2))
    return [CertificateFolder(folder) for folder in folders]


@pytest.fixture
def folder(issued, tmp_path):
    """The files of the first authority, in use."""
    shutil.copytree(issued[0].folder, tmp_path / "in use")
    return CertificateFolder(tmp_path / "in use")


def replace(folder: CertificateFolder, by: CertificateFolder, *names: str) -> None:
    """Put another authority's files in place, as `mv` does; all of them unless some are named."""
    for path in by.folder.iterdir():
        if not names or path.name in names:
            new = folder.folder / f"{path.name}.new"
            shutil.copy2(path, new)
            os.replace(new, folder.folder / path.name)


# The files.


@pytest.fixture
def files(folder):
    return PemFiles(folder.ca, folder.certificate("edge-0"), folder.key("edge-0"), ("client-ca", "cert", "cert-key"))


def test_files_that_are_replaced_count_together(files, folder, issued, caplog):
    before, first = files.present()
    assert files.present() == (before, first)
    replace(folder, issued[1], "edge-0-key.pem")
    assert files.present() == (before, first)  # the key came first, and is not this certificate's
    replace(folder, issued[1])
    after, second = files.present()
    assert second == first + 1
    assert (after.ca, after.certificate) == (issued[1].ca.read_bytes(), issued[1].certificate("edge-0").read_bytes())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: f.certificate("edge-0").write_bytes(f.certificate("edge-0").read_bytes()[:200]),
            "cert=.* a part of",
        ),
        (lambda f: f.certificate("edge-0").unlink(), "cert=.*: it cannot be read"),
        (lambda f: f.certificate("edge-0").write_bytes(b""), "cert=.*: it holds no certificate"),
        (lambda f: halve(f.ca), "client-ca=.* or a part of one"),
        (lambda f: halve(f.key("edge-0")), "cert-key=.*: it is no private key"),
        (lambda f: f.key("edge-0").chmod(0o644), "cert-key=.*: other users may read"),
    ],
    ids=["half", "gone", "empty", "half an authority", "half a key", "open to all"],
)
def test_a_file_that_will_not_do_keeps_the_old_ones_with_one_line(files, folder, issued, caplog, damage, said):
    before = files.present()
    damage(folder)
    os.utime(folder.folder / "edge-0-key.pem")
    for _ in range(3):
        assert files.present() == before
    (record,) = caplog.records
    assert record.getMessage().endswith("; new connections go on with the files of before")
    with pytest.raises(ConfigError, match=said):  # at the start it is an error
        PemFiles(folder.ca, folder.certificate("edge-0"), folder.key("edge-0"), ("client-ca", "cert", "cert-key"))
    replace(folder, issued[1])
    assert files.version == before[1] + 1


def test_the_disk_is_not_asked_for_each_connection(files, folder, issued, monkeypatch):
    monkeypatch.setattr(pem_files, "_LOOK", 3600.0)
    before = files.present()
    replace(folder, issued[1])
    assert files.present() == before


# An edge.


@pytest.fixture
def door(folder, tmp_path):
    certificates = Certificates(folder.ca, folder.certificate("edge-0"), folder.key("edge-0"))
    door = EdgeDoor(0, "127.0.0.1:0", certificates, tmp_path / "journal", Limits(handshake_seconds=60))
    yield door
    door.close()


def shown(door, client: CertificateFolder) -> str:
    """The certificate that the door shows to who comes with this authority's files; SSLError where it refuses."""
    context = ssl.create_default_context(cafile=client.ca)
    context.load_cert_chain(client.certificate("device-0"), client.key("device-0"))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", door.port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        found = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
        secure.recv(1)  # in TLS 1.3 the door refuses a client's certificate after the handshake
        return found.public_bytes(Encoding.PEM).decode().strip()


def test_an_edge_shows_and_asks_for_what_lies_on_the_disk_now(door, folder, issued):
    one, other = issued
    assert shown(door, one) in one.certificate("edge-0").read_text()
    credentials = grpc.ssl_channel_credentials(
        one.ca.read_bytes(), one.key("device-0").read_bytes(), one.certificate("device-0").read_bytes()
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"localhost:{door.port}", credentials, options=options) as channel:
        grpc.channel_ready_future(channel).result(10)
        open_before = []
        channel.subscribe(open_before.append)
        replace(folder, other)
        assert shown(door, other) in other.certificate("edge-0").read_text()
        with pytest.raises((ssl.SSLError, OSError)):
            shown(door, one)
        assert set(open_before) <= {grpc.ChannelConnectivity.READY}  # it goes on


# A device, and an edge that calls another.


class Channel:
    def __init__(self):
        self.closed = False
        self.ends = []

    def stream_stream(self, method):
        def begin(timeout):
            call = type("Call", (), {})()
            call.add_done_callback = self.ends.append
            return call

        return begin

    async def close(self):
        self.closed = True


class Files:
    """What opens channels, and whether its files were replaced."""

    limits = Limits(streams=2)

    def __init__(self):
        self.files = 1
        self.opened = []

    def channel(self, address):
        self.opened.append(Channel())
        return self.opened[-1]


def test_a_stream_has_a_connection_of_the_present_files_and_the_one_before_ends_with_its_last_stream():
    async def scene():
        dialler = Files()
        connections = Connections("edge:1", dialler)
        begin = connections.stream_stream(METHOD)
        for _ in range(3):
            begin()
        first, second = dialler.opened
        dialler.files = 2
        begin()
        assert len(dialler.opened) == 3
        first.ends[0](None)
        await asyncio.sleep(0)
        assert not first.closed  # another stream goes on
        first.ends[1](None)
        second.ends[0](None)
        await connections.close()
        assert [channel.closed for channel in dialler.opened] == [True] * 3

    asyncio.run(scene())


class ReplacedAfter(fsl.Observer):
    """Puts another authority's files in place after the first round."""

    def __init__(self, folder, by):
        self._said = folder, by

    def on_round(self, row):
        if row["round"] == 1:
            replace(*self._said)


@pytest.mark.slow
def test_a_federation_goes_on_with_another_authority_in_the_middle_of_a_run(folder, issued, tmp_path, caplog):
    caplog.set_level("INFO", pem_files.__name__)
    edge, device = tls(folder, mutual=True)
    backend = Wired(folder=tmp_path / "nodes", edges=1, edge_tls=edge, device_tls=device)
    observers = [ReplacedAfter(folder, issued[1])]
    found = run(SplitFedV1(), devices=2, rounds=3, backend=backend, observers=observers)
    assert_same_result(run(SplitFedV1(), devices=2, rounds=3), found)
    assert all(row["lost"] == {} for row in found.metrics)
    assert len([r for r in caplog.records if "new certificate files count" in r.message]) == 3  # edge, and two nodes
