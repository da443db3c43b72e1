"""What a node builds because a message names it: classes of the kind that the place asks for, and nothing else."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

from fsl.codecs import Codec
from fsl.data import TaskData, digits
from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import build_workload
from fsl.deployment.node.setup_names import check_group
from fsl.errors import WireError
from fsl.importing.import_paths import _CLOSED as CLOSED
from fsl.importing.import_paths import ALLOWED, locate_allowed
from fsl.importing.spec import Spec
from fsl.round.front_device import Device
from fsl.trainers import EdgeTrainer, Pooled
from tests.helpers.node_setups import DEVICE, setup_of

WIDE = (*ALLOWED, "torch", "tests", "os", "subprocess", "flwr", "logging", "pathlib")


def annotated(rows: int = 100, folder: Path | None = None, label: str = "") -> TaskData:
    """A loader of a user's own."""
    return digits()


def unannotated(rows=100):
    """Who knows what this gives."""
    return digits()


class Own(nn.Module):
    """A model of a user's own."""

    trap = property(lambda self: pytest.fail("computed"))


def factory() -> nn.Module:
    """A function that makes a model."""
    return Own()


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "torch.hub.load"),
        ("model", "torch.load"),
        ("model", "torch.jit.load"),
        ("model", "torch.nn.functional.relu"),
        ("model", "torch.nn.Module.load_state_dict"),
        ("model", "torch.optim.SGD"),
        ("model", "torch.utils.data.DataLoader"),
        ("model", "fsl.data.images"),
        ("model", "fsl.deployment.metrics_endpoint.MetricsEndpoint"),
        ("model", "fsl.deployment.certs.issue"),
        ("model", "tests.deployment.test_named.factory"),
        ("model", "tests.deployment.test_named.Own.trap"),
        ("model", "tests.deployment.test_named.Own.__init__"),
        ("model", "tests.__main__.Own"),
        ("model", "tests.deployment.test_named.nn.Linear.forward"),
        ("model", "subprocess.Popen"),
        ("model", "logging.FileHandler"),
        ("model", "tests.deployment.test_named"),
        ("model", "tests.deployment.test_named:Own"),
        ("model", "tests..test_named.Own"),
        ("model", "tests.deployment.test_named.Own\n"),
        ("model", "\x1b[2Jtests.x.Own"),
        ("model", ["tests.deployment.test_named.Own"]),
        ("model", None),
        ("strategy", "fsl.run.simulate.simulate"),
        ("strategy", "fsl.models.MLP"),
        ("strategy", "fsl.attacks.FSHA"),
        ("partition", "fsl.data.images"),
        ("partition", "fsl.data.Partitioner"),
        ("partition", "fsl.wire.edge.door.EdgeDoor"),
        ("objective", "torch.load"),
        ("objective", "torch.nn.functional.mse_loss"),
        ("objective", "fsl.models.factory"),
        ("data", "torch.hub.load"),
        ("data", "torch.load"),
        ("data", "torch.hub.list"),
        ("data", "torch.hub.load_state_dict_from_url"),
        ("data", "tests.deployment.test_named.unannotated"),
        ("data", "fsl.data.from_dataset"),
        ("data", "fsl.data.hold_out"),
        ("data", "fsl.data.TaskData"),
        ("data", "fsl.models.MLP"),
        ("data", "tests.deployment.test_named.digits.__globals__"),
    ],
)
def test_what_the_place_does_not_ask_for_is_refused_and_never_called(group, target):
    with pytest.raises(WireError, match=rf"the run's {group} names .* and as {group} only") as refused:
        check_group(group, {"_target_": target}, WIDE)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("model", "torch.nn.Linear"),
        ("model", "tests.deployment.test_named.Own"),
        ("model", "fsl.models.VGG5"),
        ("strategy", "fsl.strategies.SGLR"),
        ("strategy", "tests.helpers.faulty.StagedV1"),
        ("partition", "fsl.data.Dirichlet"),
        ("objective", "torch.nn.SmoothL1Loss"),
        ("objective", "fsl.objective.Huber"),
        ("data", "tests.deployment.test_named.annotated"),
        ("data", "fsl.data.cifar10"),
    ],
)
def test_what_the_place_asks_for_is_taken(group, target):
    check_group(group, {"_target_": target}, WIDE)


@pytest.mark.parametrize(
    "options",
    [
        {"width": {"_target_": "os.system", "command": "true"}},
        {"width": [{"deep": {"_target_": "fsl.models.MLP"}}]},
        {"_args_": ["x"]},
        {"_partial_": True},
        {"_recursive_": True},
        {"_convert_": "all"},
    ],
)
def test_options_that_are_objects_again_are_refused(options):
    with pytest.raises(WireError, match=r"among its options, and a node builds nothing that options name"):
        check_group("model", {"_target_": "fsl.models.MLP", **options}, WIDE)


@pytest.mark.parametrize(
    "options",
    [
        {"label": "/etc/passwd"},
        {"label": "../other"},
        {"label": "a/../../b"},
        {"label": "~/other"},
        {"label": "https://example.org/x"},
        {"label": "C:\\other"},
        {"label": ["x", "/etc"]},
        {"label": ["x", ["/etc"]]},
        {"label": {"deep": [{"er": "/etc"}]}},
        {"label": {"/etc": 1}},
        {"label": "file:/etc"},
        {"folder": "inside"},
    ],
)
def test_where_data_lie_no_option_says(options):
    with pytest.raises(WireError, match="where data lie only this node says; set data-path or data-name"):
        check_group("data", {"_target_": "tests.deployment.test_named.annotated", **options}, WIDE)
    check_group("data", {"_target_": "tests.deployment.test_named.annotated", "label": "meta.label", "rows": 3}, WIDE)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("fsl.deployment.metrics_endpoint.MetricsEndpoint", EdgeTrainer),
        ("fsl.attacks.hijacking.FSHATrainer", EdgeTrainer),
        ("fsl.trainers.Pooled", Device),
        ("fsl.trainers.EdgeTrainer", EdgeTrainer),
        ("torch.optim.lr_scheduler.StepLR", EdgeTrainer),
        ("fsl.codecs.Identity", EdgeTrainer),
        ("fsl.trainers.Pooled", Codec),
        ("fsl.trainers.edge_trainer.torch.optim.SGD", EdgeTrainer),
        ("fsl.seeds.derive", EdgeTrainer),
    ],
)
def test_a_plan_gets_classes_of_the_kind_alone(path, kind):
    with pytest.raises(WireError, match="a message names"):
        locate_allowed(path, ALLOWED, kind)


@pytest.mark.parametrize("room", CLOSED)
def test_no_message_names_a_class_of_a_closed_room(room):
    import_module(room)  # it is there: a room that moved would be open
    with pytest.raises(WireError, match="takes classes only from"):
        locate_allowed(f"{room}.Anything", ALLOWED)


@pytest.mark.parametrize("path", ["fsl.LocalFederation", "fsl.Observer", "fsl.flower.InlineGrid", "fsl.split"])
def test_the_face_opens_no_closed_room(path):
    with pytest.raises(WireError, match="a message names"):
        locate_allowed(path, ALLOWED, (nn.Module, EdgeTrainer))


def test_a_setup_that_names_a_function_reaches_no_data_and_no_model():
    sent = setup_of()
    sent = replace(sent, groups=sent.groups | {"model": {"_target_": "torch.hub.load", "repo_or_dir": "x"}})
    with pytest.raises(WireError, match=r"the run's model names 'torch.hub.load'.* only a class of torch.nn"):
        build_workload(sent, NodeSettings.read({**DEVICE, "allow": "torch"}))


def test_a_spec_in_a_message_builds_only_what_is_allowed_there():
    pooled = Spec("fsl.trainers.Pooled", {"phi": 0.5})
    assert pooled.build().phi == pooled.build(ALLOWED, EdgeTrainer).phi == 0.5
    assert pooled.locate(ALLOWED) is pooled.locate() is Pooled
    with pytest.raises(WireError, match=r"a message names 'subprocess\.Popen', but this node takes classes only from"):
        Spec("subprocess.Popen", {"args": "false"}).build(ALLOWED)
    with pytest.raises(
        WireError, match=r"'fsl\.codecs\.Int8', and only a class of fsl.trainers.EdgeTrainer can be used"
    ):
        Spec("fsl.codecs.Int8").build(ALLOWED, EdgeTrainer)
