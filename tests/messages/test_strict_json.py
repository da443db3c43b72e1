"""JSON from the network: it is a message to the letter, or refused in one line."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl.errors import WireError
from fsl.importing.spec import Spec
from fsl.messages.node_part import EdgePart, EdgePeer, NodePart, Ticket, Visitor
from fsl.messages.round_plan import CohortTask, DeviceTask, EvaluatePlan, RoundPlan
from fsl.mobility import Move
from fsl.privacy.settings import DPSGD, CutNoise, Detector, Privacy, Probe

TASK = DeviceTask(device=3, version=2, saved=1, samples=40)
PLAN = RoundPlan(
    run="r",
    seed=-7,
    round=3,
    cohorts=(CohortTask(edge=1, devices=(TASK,), version=2),),
    fronts="private",
    trainer=Spec("fsl.trainers.Pooled", {"phi": 0.5, "own": [1, {"a": None}]}),
    device=Spec("fsl.device.Device"),
    one_by_one=False,
    optimizer=Spec("torch.optim.SGD", {"momentum": 0.9}),
    learning_rates={"front": 0.1, "back": 1},
    reset_optimizer=True,
    batch_size=4,
    local_epochs=1,
    up=Spec("fsl.codecs.Identity"),
    down=Spec("fsl.codecs.Identity"),
    moves=(Move(3, 0.5, 0),),
    privacy=Privacy(dp_sgd=DPSGD(1.5, clip=2.0), cut=CutNoise(0.5), detector=Detector()),
    kept={"edge-1": (2, 1)},
)
EVALUATE = EvaluatePlan(run="r", round=3, devices=(TASK,), probe=Probe(20, 1, CutNoise(1.0)))
PART = NodePart(
    edges=(
        EdgePart(
            cohort=PLAN.cohorts[0],
            cloud_key="ab" * 32,
            fence=(1 << 64) - 1,
            peers=(EdgePeer(edge=0, address="10.0.0.1:65535", key="cd" * 32),),
            visitors=(Visitor(task=TASK, home=0),),
        ),
    ),
    tickets=(Ticket(task=TASK, edge=1, address="[::1]:1", token="ee" * 40, others=((0, "edge0.example.org:00080"),)),),
    relay_key="ff" * 32,
    alone=(DeviceTask(device=0),),
    replicate_every=5,
    deadline=60,
)
MESSAGES = [PLAN, EVALUATE, PART, NodePart(), replace(PLAN, trainer=None, privacy=None, moves=())]
each = pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["device-0", "edge-1", "127.0.0.1:80", "ab" * 32, "averaged", "migrate", "fsl.codecs.Int8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def places(values: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values in nested JSON, the whole first."""
    found = [way]
    if isinstance(values, dict | list):
        for key, inner in values.items() if isinstance(values, dict) else enumerate(values):
            found += places(inner, (*way, key))
    return found


def changed(values: Any, way: tuple[Any, ...], change: Any) -> Any:
    """Nested JSON with another value in this place."""
    if not way:
        return change(values)
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[way[0]] = changed(copy[way[0]], way[1:], change)
    return copy


def check(kind: Any, text: str) -> None:
    """Either it is read as a message that says the same, or refused in one line."""
    found, refusal = None, ""
    try:
        found = kind.from_json(text)
    except WireError as error:
        refusal = str(error)
    assert refusal.isprintable()
    assert len(refusal) < 400
    assert refusal or json.loads(found.to_json()) == json.loads(text)


@each
def test_a_message_survives_its_way(message):
    assert type(message).from_json(message.to_json()) == message


@pytest.mark.slow
@each
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_change_of_a_message_is_read_as_it_is_or_refused_in_one_line(message, data):
    values = json.loads(message.to_json())
    way = data.draw(st.sampled_from(places(values)))
    junk = data.draw(PLAIN)
    check(type(message), json.dumps(changed(values, way, lambda old: junk)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RoundPlan, EvaluatePlan, NodePart], ids=lambda kind: kind.__name__)
@settings(max_examples=100, deadline=None)
@given(text=st.text() | PLAIN.map(json.dumps))
def test_any_text_is_refused_in_one_line(kind, text):
    with pytest.raises(WireError) as refused:
        kind.from_json(text)
    assert str(refused.value).isprintable()


@each
def test_a_field_too_few_or_too_many_is_refused(message):
    values = json.loads(message.to_json())
    for way in places(values):
        if "kwargs" in way or "learning_rates" in way or "kept" in way:
            continue  # names of their own
        inner = values
        for key in way:
            inner = inner[key]
        if not isinstance(inner, dict):
            continue
        if inner.keys() not in ({"front", "back"}, {"edge-1"}, set()):
            for name in inner:
                less = changed(values, way, lambda old, name=name: {k: v for k, v in old.items() if k != name})
                with pytest.raises(WireError, match=f"`{name}`|has the fields .*{name}"):
                    type(message).from_json(json.dumps(less))
            with pytest.raises(WireError, match="has the fields"):
                type(message).from_json(json.dumps(changed(values, way, lambda old: old | {"more": 1})))


@pytest.mark.parametrize(
    ("way", "junk"),
    [
        (("batch_size",), "4"),
        (("batch_size",), 4.0),
        (("batch_size",), True),
        (("batch_size",), 0),
        (("round",), 1 << 31),
        (("round",), -1),
        (("run",), "a\nb"),
        (("run",), "a" * 201),
        (("one_by_one",), 1),
        (("reset_optimizer",), "yes"),
        (("fronts",), "mine"),
        (("on_move",), "fly"),
        (("learning_rates", "front"), -0.1),
        (("learning_rates", "front"), float("nan")),
        (("learning_rates", "front"), True),
        (("learning_rates", "front"), (1 << 53) + 1),
        (("moves", 0, "fraction"), 0),
        (("moves", 0, "fraction"), 1.5),
        (("moves", 0, "device"), -1),
        (("moves", 0, "edge"), 1 << 31),
        (("kept",), {"../x": [1, 0]}),
        (("kept",), {"edge-1": [1]}),
        (("kept",), {"edge-1": [1, 0, 0]}),
        (("cohorts", 0, "devices"), {}),
        (("trainer", "target"), 7),
        (("trainer", "kwargs"), []),
        (("privacy", "dp_sgd", "clip"), -1.0),
        (("privacy", "dp_sgd", "clip"), "1.0"),
        (("privacy", "accountant"), "mine"),
        (("privacy", "cut", "noise_multiplier"), float("inf")),
    ],
)
def test_a_value_that_is_no_plan_s_is_refused(way, junk):
    text = json.dumps(changed(json.loads(PLAN.to_json()), way, lambda old: junk))
    with pytest.raises(WireError, match=r"this is not a round's plan: .* must run the same version of fsl"):
        RoundPlan.from_json(text)


@pytest.mark.parametrize(
    ("way", "junk"),
    [
        (("edges", 0, "fence"), 1 << 64),
        (("edges", 0, "fence"), -1),
        (("edges", 0, "cloud_key"), "ab" * 31),
        (("edges", 0, "cloud_key"), "AB" * 32),
        (("edges", 0, "cloud_key"), "ab" * 32 + "\n"),
        (("edges", 0, "peers", 0, "address"), "10.0.0.1:65536"),
        (("edges", 0, "peers", 0, "address"), "10.0.0.1:80\n"),
        (("edges", 0, "peers", 0, "key"), ""),
        (("edges", 0, "visitors", 0, "home"), -1),
        (("tickets", 0, "others", 0), [0]),
        (("tickets", 0, "token"), "e"),
        (("tickets", 0, "token"), "ee" * 4097),
        (("relay_key",), "ff"),
        (("replicate_every",), 1.0),
        (("deadline",), 0),
        (("deadline",), float("inf")),
        (("deadline",), float("nan")),
    ],
)
def test_a_value_that_is_no_part_s_is_refused(way, junk):
    text = json.dumps(changed(json.loads(PART.to_json()), way, lambda old: junk))
    with pytest.raises(WireError, match="this is no part in a round"):
        NodePart.from_json(text)


@pytest.mark.parametrize("kind", [RoundPlan, EvaluatePlan, NodePart], ids=lambda kind: kind.__name__)
def test_depth_is_refused_in_one_line(kind):
    with pytest.raises(WireError, match="recursion"):
        kind.from_json("[" * 100_000)


def test_what_a_class_is_built_from_travels_as_it_is():
    own = {"whole": 1, "huge": 1 << 80, "endless": float("inf"), "deep": [[{"a": [True, None, "x"]}]]}
    plan = replace(PLAN, trainer=Spec("a.B", own))
    found = RoundPlan.from_json(plan.to_json())
    assert found.trainer == Spec("a.B", own)
    assert type(found.trainer.kwargs["whole"]) is int
