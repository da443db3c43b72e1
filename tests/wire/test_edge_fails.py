"""An edge that fails, at whatever place: its devices hear it at once, by name, and no device waits for an answer."""

import pytest
from fsl.strategies import PSL, SplitFedV1, SplitFedV2

from fsl.round.edge_server import EdgeServer
from fsl.round.edge_side import EdgeSide
from fsl.wire.device.line import Line
from fsl.wire.edge.admission import Admission
from fsl.wire.edge.edge_events import Asked
from fsl.wire.edge.edge_round import EdgeRound
from fsl.wire.edge.other_edges import OtherEdges
from fsl.wire.edge.refusal import Refusal
from fsl.wire.options import Limits, Patience
from tests.helpers.each_time import by_type, each_time, products
from tests.helpers.lowlevel import HONEST, Edge, Stranger, a_plan
from tests.helpers.runs import ADAM, run
from tests.helpers.small import small_model
from tests.helpers.wired import Wired

pytestmark = pytest.mark.slow

OPTIONS = {"devices": 4, "optimizer": ADAM, "batch_size": 10, "local_epochs": 2}  # six uploads a round
LONG = Patience(join=15, straggler=15, answer=15)  # who waits that long has not heard
PLACES = {
    "before the round": (EdgeSide, "__init__"),
    "as it begins": (EdgeRound, "serve"),
    "opens": (EdgeServer, "open"),
    "answers": (EdgeServer, "answer"),
    "flushes": (EdgeServer, "flush"),
    "closes": (EdgeServer, "close"),
    "is told that a device closed": (EdgeRound, "_close"),
}


FAILS = products(by_type([SplitFedV1(), SplitFedV2(), PSL()]), {place: place for place in PLACES})


# What an edge does before and behind its steps is the same for each strategy; it answers one, one by one, and all.
@pytest.mark.parametrize(
    ("strategy", "place"),
    each_time(FAILS, [name for name in FAILS if name.startswith("PSL") or name.endswith(("answers", "-closes"))]),
)
def test_an_edge_that_fails_is_heard_by_its_devices(strategy, place, tmp_path, monkeypatch):
    kind, name = PLACES[place]
    original = getattr(kind, name)

    def fails(*arguments, **named):
        about = arguments[0]
        edge = getattr(about, "edge", getattr(getattr(about, "server", None), "edge", None))
        if place == "before the round":
            edge = arguments[1].edge
        if edge == 1:
            raise ArithmeticError("no such luck")
        return original(*arguments, **named)

    monkeypatch.setattr(kind, name, fails)
    backend = Wired(folder=tmp_path, edges=2, device_nodes=2, patience=LONG)
    found = run(strategy, rounds=1, edges=2, model=small_model(), backend=backend, **OPTIONS)
    (row,) = found.metrics
    assert set(row["lost"]) == {"1", "3"}
    for reason in row["lost"].values():
        assert "no such luck" in reason
        assert "said nothing" not in reason
        assert "serves no round" not in reason


def test_who_is_left_when_a_round_ends_is_told(tmp_path):
    with Edge(tmp_path, a_plan(), range(HONEST + 1)) as edge, Stranger(edge, 2) as stranger:
        stranger.enter()
        edge.door.end(0.1)
        code, reason = stranger.refusal()
    assert code.name == "FAILED_PRECONDITION"
    assert reason == "round 1 is over at edge 0, without device 2"


def test_a_round_waits_no_longer_than_its_last_words_take(tmp_path):
    with Edge(tmp_path, a_plan(), range(HONEST + 1)) as edge, Stranger(edge, 2) as stranger:
        stranger.enter()
        edge.door.end(5)  # returns sooner where all has left
        assert edge.admission.sessions[2].delivered.is_set()
        assert stranger.refusal()[0].name == "FAILED_PRECONDITION"


def test_a_device_whose_line_fails_is_lost_by_name(tmp_path, monkeypatch):
    async def fails(line):
        raise ArithmeticError("no such luck")

    monkeypatch.setattr(Line, "_stream", fails)
    with Edge(tmp_path, a_plan(), range(HONEST), patience=LONG) as edge:
        _, outcome = edge.attend(tmp_path / "device", range(HONEST))
    assert set(outcome.lost) == set(range(HONEST))
    assert all("no such luck" in reason for reason in outcome.lost.values())


def test_what_another_edge_asked_is_answered_when_the_round_ends():
    admission = Admission("run", 1, 0, 1, b"", {0}, "", "")
    other_edges = OtherEdges(admission, None, (), Limits(), LONG, lambda *_: None)
    answers = []
    admission.inbox.put(Asked(0, 1, answers.append))
    other_edges.rest()
    (answer,) = answers
    assert isinstance(answer, Refusal)
    assert "the round is over at edge 0" in answer.reason
