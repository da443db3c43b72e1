"""Mobility models: which device moves when, and what is refused."""

import pytest

from fsl.errors import ConfigError
from fsl.mobility import BackAndForth, Move, RandomMobility, ScheduledMobility, TraceMobility, moves_of, route


def entry(**changed):
    return {"device": 0, "round": 1, "fraction": 0.5, "edge": 1} | changed


def of(mobility, round, devices=10, edges=2, home=lambda device: device % 2, seed=0):
    return moves_of(mobility, round, range(devices), home, edges, seed)


@pytest.mark.parametrize(
    ("fraction", "steps", "done"), [(0.1, 10, 1), (0.5, 10, 5), (0.5, 5, 3), (1, 7, 7), (0.01, 3, 1)]
)
def test_a_fraction_is_so_many_uploads(fraction, steps, done):
    assert Move(0, fraction, 1).after(steps) == done


def test_a_route_leaves_out_moves_to_where_the_device_is():
    moves = [Move(0, 0.9, 0), Move(0, 0.2, 0), Move(0, 0.5, 2), Move(0, 0.51, 1)]
    assert route(0, moves, 10) == [(5, 1), (9, 0)]
    assert route(0, moves, 0) == []


def test_a_schedule_says_each_move():
    mobility = ScheduledMobility([entry(), entry(round=2, fraction=0.9), entry(device=3, round=2, edge=0)])
    assert of(mobility, 1) == (Move(0, 0.5, 1),)
    assert of(mobility, 2) == (Move(0, 0.9, 1), Move(3, 0.5, 0))
    assert of(mobility, 3) == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fraction": 0.0}, "fraction=0.0"),
        ({"fraction": 1.5}, "fraction=1.5"),
        ({"fraction": "half"}, "fraction='half'"),
        ({"round": 0}, "round=0"),
        ({"device": -1}, "device=-1"),
        ({"edge": 1.0}, "edge=1.0"),
        ({"when": 3}, "give device, round, fraction and edge"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(changed, said):
    with pytest.raises(ConfigError, match=said):
        ScheduledMobility([entry(**changed)])


def test_devices_and_edges_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match=r"device 10 .* there are 0 to 9"):
        ScheduledMobility([entry(device=10)]).check(10, 2)
    with pytest.raises(ConfigError, match=r"edge 2 .* there are 0 to 1"):
        ScheduledMobility([entry(edge=2)]).check(10, 2)
    with pytest.raises(ConfigError, match="set edges=2 or more"):
        RandomMobility(0.5).check(10, 1)
    with pytest.raises(ConfigError, match=r"mobility.p=1.5"):
        RandomMobility(1.5)


def test_back_and_forth():
    mobility = BackAndForth([3, 0], 0.9)
    assert of(mobility, 1) == of(mobility, 7) == (Move(0, 0.9, 1), Move(3, 0.9, 0))
    with pytest.raises(ConfigError, match="there is no device 3; there are 0 to 2"):
        mobility.check(3, 2)


def test_random_moves_have_their_probability_and_go_elsewhere():
    mobility, count = RandomMobility(0.2), 0
    for round in range(1, 21):
        found = of(mobility, round, devices=500, edges=5, home=lambda device: device % 5)
        count += len(found)
        assert all(move.edge != move.device % 5 and 0 <= move.edge < 5 and 0 < move.fraction <= 1 for move in found)
    assert 1800 < count < 2200
    edges = {move.edge for move in of(mobility, 1, devices=500, edges=5, home=lambda device: 2)}
    assert edges == {0, 1, 3, 4}


def test_random_moves_are_of_seed_device_and_round_alone():
    mobility = RandomMobility(0.5)
    all_of_them = of(mobility, 3)
    assert moves_of(RandomMobility(0.5), 3, [7, 4], lambda d: d % 2, 2, 0) == tuple(
        move for move in all_of_them if move.device in (4, 7)
    )
    assert of(mobility, 3, seed=1) != all_of_them
    assert of(mobility, 4) != all_of_them
    assert of(RandomMobility(0.0), 1) == ()
    assert len(of(RandomMobility(1.0), 1)) == 10


def test_a_trace_says_where_devices_are_and_when_they_change(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("device,time,edge\n1,0,0\n0,0,1\n0,30,0\n0,60,1\n0,100,2\n")
    mobility = TraceMobility(str(path), round_seconds=60)
    assert [mobility.home(0, round) for round in (1, 2, 3)] == [1, 1, 2]
    assert mobility.home(5, 1) is None
    assert of(mobility, 1, edges=3) == (Move(0, 0.5, 0), Move(0, 1.0, 1))
    assert of(mobility, 2, edges=3) == (Move(0, pytest.approx(40 / 60), 2),)
    assert of(mobility, 3, edges=3) == ()
    with pytest.raises(ConfigError, match="names edge 2; there are 0 to 1"):
        mobility.check(2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("device,time,edge\n", "it has no rows"),
        ("device,time,edge\n0,x,1\n", "line 2: it has no device, time and edge"),
        ("a,b,c\n0,1,1\n", "line 2"),
        ("device,time,edge\n0,1,1\n0,nan,1\n", "line 3"),
        ("device,time,edge\n0,1,-1\n", "line 2: device, time and edge are not negative"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(text, said, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        TraceMobility(str(path))


def test_a_trace_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no.csv: it cannot be read \(No such file"):
        TraceMobility(str(tmp_path / "no.csv"))
    with pytest.raises(ConfigError, match=r"mobility.round_seconds=0"):
        TraceMobility(str(tmp_path / "no.csv"), round_seconds=0)
