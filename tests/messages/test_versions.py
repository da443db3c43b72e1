"""The two ends say their versions when a node becomes a member and when a session opens; others are named."""

import json
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest
from flwr.app import ConfigRecord, RecordDict
from fsl.simulations.error_lines import one_line as told

import fsl
from fsl.deployment.cloud.members import Members
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.logs import set_up
from fsl.deployment.node.setup import Setup
from fsl.errors import RunError, WireError
from fsl.messages import versions
from fsl.messages.record_names import CONFIG, MEMBER
from fsl.messages.versions import PROTOCOL, VersionError, check_versions
from fsl.quoting import one_line, printable
from fsl.run.plain_logs import PlainFormatter
from fsl.run.run_log import RunLog
from tests.helpers.at_once import AnswersAtOnce
from tests.helpers.lowlevel import Edge, Stranger, a_plan
from tests.helpers.node_setups import setup_of


@pytest.mark.parametrize("version", ["0.3.0", "0.3.7", "0.3.2.dev1", "0.3.1rc1+local"])
def test_versions_of_one_minor_go_together(monkeypatch, version):
    monkeypatch.setattr(versions, "__version__", "0.3.1")
    check_versions(PROTOCOL, version, "the cloud", "this node")


@pytest.mark.parametrize(
    ("protocol", "version", "said", "upgrade"),
    [
        (PROTOCOL, "0.2.0", f"fsl 0.2.0 (protocol {PROTOCOL})", "the cloud: pip install 'fsl-flower==0.3.*'"),
        (PROTOCOL, "0.4.0", f"fsl 0.4.0 (protocol {PROTOCOL})", "this node: pip install 'fsl-flower==0.4.*'"),
        (PROTOCOL, "0.10.0", f"fsl 0.10.0 (protocol {PROTOCOL})", "this node: pip install 'fsl-flower==0.10.*'"),
        (PROTOCOL + 1, "0.3.1", f"fsl 0.3.1 (protocol {PROTOCOL + 1})", "this node: pip install 'fsl-flower==0.3.*'"),
        (None, None, "an fsl that says no version", "the cloud: pip install 'fsl-flower==0.3.*'"),
        (PROTOCOL, "\x1b[2J0.3.1", "an fsl that says no version", "the cloud:"),
        (True, "0.3.1", "fsl 0.3.1 (protocol 1)", "the cloud:"),
        ("2", ["0.3.1"], "an fsl that says no version", "the cloud:"),
        (0, "", "an fsl that says no version", "the cloud:"),
    ],
)
def test_others_are_named_with_what_to_upgrade(monkeypatch, protocol, version, said, upgrade):
    monkeypatch.setattr(versions, "__version__", "0.3.1")
    with pytest.raises(VersionError) as refused:
        check_versions(protocol, version, "the cloud", "this node")
    assert f"the cloud runs {said}" in str(refused.value)
    assert f"this node fsl 0.3.1 (protocol {PROTOCOL}); upgrade {upgrade}" in str(refused.value)
    assert str(refused.value).isprintable()


# Membership


def test_a_node_refuses_the_setup_of_another_version():
    raw = json.loads(setup_of().to_json())
    with pytest.raises(VersionError, match=r"the cloud runs fsl 9.9.0 .*, this node fsl .*; upgrade this node"):
        Setup.from_json(json.dumps(raw | {"version": "9.9.0"}))
    older = {
        name: value for name, value in raw.items() if name not in ("version", "protocol", "class_names", "outputs")
    }
    with pytest.raises(VersionError, match="the cloud runs an fsl that says no version"):
        Setup.from_json(json.dumps(older))


class OneNode(AnswersAtOnce):
    """A Grid of one node, which answers what it is told to."""

    def __init__(self, said):
        self.said = said

    def get_node_ids(self):
        return [7]

    def send_and_receive(self, messages, timeout):
        text = self.said if isinstance(self.said, str) else json.dumps(self.said)
        content = RecordDict({CONFIG: ConfigRecord({MEMBER: text})})
        for message in messages:
            metadata = SimpleNamespace(src_node_id=7, reply_to_message_id=message.metadata.message_id)
            yield SimpleNamespace(metadata=metadata, content=content, has_error=lambda: False)


MEMBER_SAYS = {
    "role": "device",
    "samples": {"0": 10},
    "edge": None,
    "address": "",
    "key": "ab",
    "edge_key": "",
    "line": False,
    "protocol": PROTOCOL,
    "version": fsl.__version__,
}


@pytest.fixture(autouse=True)
def no_task(monkeypatch):
    """Flower's messages want to know of which run they are."""

    def message(content, node, *_, **more):
        return SimpleNamespace(metadata=SimpleNamespace(message_id="", dst_node_id=node))

    monkeypatch.setattr("fsl.deployment.cloud.members.Message", message)


def look(said):
    members = Members("", Terms(wait=0.01, bind_keys=False))
    members.look(OneNode(said), 1, 0, first=True)
    return members


def test_a_node_of_this_version_is_a_member():
    assert dict(look(MEMBER_SAYS).online[0].samples) == {0: 10}


def test_a_node_of_another_version_is_no_member():
    older = {name: value for name, value in MEMBER_SAYS.items() if name not in ("protocol", "version")}
    with pytest.raises(RunError, match=r"node 7: this node runs an fsl that says no version .*; upgrade this node"):
        look(older)
    with pytest.raises(RunError, match=r"this node runs fsl 0.0.9 .*, the cloud fsl .*; upgrade this node: pip"):
        look(MEMBER_SAYS | {"version": "0.0.9"})


@pytest.mark.parametrize(
    "change",
    [
        {"edge": [1]},
        {"edge": "../x", "address": "a:1", "edge_key": "ab" * 32},
        {"edge": 1, "address": "unix:/x", "edge_key": "ab" * 32},
        {"edge": 1, "address": "a:1", "edge_key": "zz"},
        {"samples": {"0": -5}},
        {"samples": {"0": True}},
        {"samples": {"-1": 5}},
        {"samples": {"0": 1e300}},
        {"samples": {"00": 5}},
        {"samples": {"99999999999": 5}},
        {"samples": [1]},
        {"role": "\x1b[2Jcloud"},
        {"role": ["device"]},
        {"key": 5},
        {"key": "xyz"},
        {"address": "a:1"},
    ],
)
def test_a_node_that_says_what_cannot_be_is_no_member(change, caplog):
    with pytest.raises(RunError, match=r"no node hosts a device of this run; node 7: it does not say what it hosts"):
        look(MEMBER_SAYS | change)
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "[" * 100000, '{"samples": {}}', "\x1b[2J"])
def test_an_answer_that_is_none_is_one_line(text):
    with pytest.raises(RunError, match="node 7: "):
        look(text)


# Sessions


@pytest.fixture
def edge(tmp_path):
    with Edge(tmp_path, a_plan(), range(1)) as found:
        yield found


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": "0.0.9"}, "device 0 runs fsl 0.0.9"),
        ({"version": "", "protocol": 0}, "device 0 runs an fsl that says no version (protocol 1)"),
        ({"protocol": PROTOCOL + 1}, f"(protocol {PROTOCOL + 1})"),
    ],
)
def test_an_edge_opens_no_session_to_a_device_of_another_version(edge, changed, said):
    with Stranger(edge, 0) as stranger:
        stranger.say(stranger.opening(**changed))
        code, reason = stranger.refusal()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert said in reason
    assert "edge 0 fsl" in reason
    assert "; upgrade " in reason


def test_a_device_opens_no_session_at_an_edge_of_another_version(edge, tmp_path, monkeypatch):
    monkeypatch.setattr("fsl.wire.edge.welcome.__version__", "9.9.0")
    _, outcome = edge.attend(tmp_path / "device", range(1))
    assert "edge 0 runs fsl 9.9.0" in outcome.lost[0]
    assert "upgrade device 0: pip install 'fsl-flower==9.9.*'" in outcome.lost[0]


# What is told


EVIL = "\x1b[2J\x1b]0;owned\x07 \x9b31m red\r\n2026-01-01 INFO fsl: all is well\u202e\u2028\ud800\0"


def test_what_is_shown_has_nothing_that_a_terminal_obeys():
    for shown in (printable(EVIL), one_line(EVIL), told(ValueError(EVIL))):
        assert shown.isprintable()
        assert "all is well" in shown
        shown.encode()
    assert printable("größer · ε=0.5 日本") == "größer · ε=0.5 日本"


def test_log_lines_are_single_and_plain(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr("sys.stderr", sys.stderr)
    set_up()
    logging.getLogger("fsl.some").warning("device %d lost: %s", 3, EVIL)
    try:
        raise WireError(EVIL)
    except WireError:
        logging.getLogger("fsl.some").exception("a message failed: %s", EVIL)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.isprintable()
    assert "device 3 lost: \\x1b[2J" in first
    assert others[0].endswith("\\x00")
    assert others[1].startswith("Traceback")
    assert all(line.isprintable() for line in others)
    with RunLog(tmp_path):
        logging.getLogger("fsl.some").warning("device lost: %s", EVIL)
    (line,) = (tmp_path / "run.log").read_text().splitlines()
    assert line.isprintable()


def test_a_record_is_left_as_it_is_for_other_handlers():
    record = logging.makeLogRecord({"msg": "said %s", "args": (EVIL,)})
    PlainFormatter("%(message)s").format(record)
    assert record.args == (EVIL,)


def test_a_reason_of_a_device_is_plain_at_the_edge(edge, caplog):
    from fsl.messages import messages_pb2 as pb
    from fsl.messages.frames import frame

    reason = "\x1b[2J went\nINFO all is well"
    with Stranger(edge, 0) as stranger:
        stranger.enter()
        stranger.say(frame(pb.ToEdge(leave=pb.Leave(reason=reason))))
        stranger.refusal()
    lost = edge.served().lost[0]
    assert lost.isprintable()
    assert "went INFO all is well" in lost


def test_what_the_versions_are_is_a_setup_s_own(monkeypatch):
    assert Setup.from_json(setup_of().to_json()).version == fsl.__version__
    assert replace(setup_of(), protocol=3).protocol == 3
