"""What the page on upgrades says: who works with whom while machines are upgraded, and what those say who do not."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode

from fsl.deployment.cloud.members import Members
from fsl.deployment.cloud.terms import Terms
from fsl.deployment.node.setup import Setup
from fsl.errors import RunError
from fsl.messages import versions
from fsl.messages.record_names import CONFIG, MEMBER
from fsl.messages.versions import VersionError
from tests.helpers.at_once import AnswersAtOnce
from tests.helpers.node_setups import setup_of
from tests.helpers.places import ROOT

OLD, PATCHED, NEW = (3, "0.3.2"), (3, "0.3.9"), (4, "0.4.0")
SAYS = {"role": "device", "edge": None, "address": "", "key": "ab", "edge_key": "", "line": False}


@pytest.fixture
def runs(monkeypatch):
    """Makes this process run a version of fsl: (protocol, version)."""

    def run(version):
        monkeypatch.setattr(versions, "PROTOCOL", version[0])
        monkeypatch.setattr(versions, "__version__", version[1])

    monkeypatch.setattr("fsl.deployment.cloud.members.Message", Asked)
    return run


class Asked:
    """A message as a Grid's fake sees it: Flower's own needs a run."""

    def __init__(self, content, node, *_, **__):
        self.content = content
        self.metadata = self
        self.dst_node_id = node

    @property
    def message_id(self):
        return self.__dict__["_message_id"]


def setup_from(cloud) -> str:
    """What a cloud of this version sends to its nodes."""
    return replace(setup_of(), protocol=cloud[0], version=cloud[1]).to_json()


class Federation(AnswersAtOnce):
    """A Grid of devices, each of a version: device k is on node k, and reads the setup as its version does."""

    def __init__(self, runs, cloud, devices):
        self.runs = runs
        self.cloud = cloud
        self.devices = devices

    def get_node_ids(self):
        return list(range(len(self.devices)))

    def send_and_receive(self, messages, timeout):
        for message in messages:
            node = message.metadata.dst_node_id
            self.runs(self.devices[node])
            try:
                Setup.from_json(message.content.config_records[CONFIG]["setup"])
                answer, error = self._answer(node), None
            except VersionError as refused:
                answer, error = None, SimpleNamespace(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(refused))
            self.runs(self.cloud)
            yield SimpleNamespace(
                metadata=SimpleNamespace(src_node_id=node, reply_to_message_id=message.metadata.message_id),
                content=answer,
                error=error,
                has_error=lambda error=error: error is not None,
            )

    def _answer(self, node):
        protocol, version = self.devices[node]
        said = SAYS | {"samples": {str(node): 10}, "protocol": protocol, "version": version}
        return RecordDict({CONFIG: ConfigRecord({MEMBER: json.dumps(said)})})

    def look(self) -> set[int]:
        """The devices of a run's first round."""
        self.runs(self.cloud)
        members = Members(setup_from(self.cloud), Terms(wait=0.01, bind_keys=False))
        members.look(self, len(self.devices), 0, first=True)
        return {device for member in members.online for device in member.samples}


def test_patches_of_a_minor_version_mix_in_any_order(runs):
    for cloud, devices in ((OLD, [PATCHED, OLD]), (PATCHED, [OLD, PATCHED])):
        assert Federation(runs, cloud, devices).look() == {0, 1}


@pytest.mark.parametrize(("cloud", "upgrade"), [(NEW, "this node"), (OLD, "the cloud")])
def test_between_minor_versions_a_run_goes_on_with_those_of_the_cloud_s(runs, caplog, cloud, upgrade):
    caplog.set_level(logging.WARNING)
    devices = [OLD, NEW, OLD]
    assert Federation(runs, cloud, devices).look() == {k for k, device in enumerate(devices) if device == cloud}
    left_out = [k for k, device in enumerate(devices) if device != cloud]
    for node in left_out:
        (line,) = [line for line in caplog.messages if line.startswith(f"node {node} takes no part: ")]
        assert f"upgrade {upgrade}: pip install 'fsl-flower==0.4.*'" in line


def test_a_cloud_without_a_node_of_its_version_says_what_to_upgrade(runs):
    with pytest.raises(RunError, match=r"no node hosts a device of this run; node 0: .*; upgrade this node"):
        Federation(runs, NEW, [OLD]).look()


def test_the_page_says_what_a_node_says(runs):
    runs(OLD)
    with pytest.raises(VersionError) as refused:
        Setup.from_json(setup_from(NEW))
    assert str(refused.value) in (ROOT / "docs" / "deploying.md").read_text()
