"""A trace is replayed to the byte: transfers end where the rates over time have carried them."""

import math

import pytest

from fsl.costs import LinkProfile, load_profile
from fsl.errors import ConfigError
from fsl.inference.planning import RateModel, RateTrace
from fsl.inference.planning.rate_trace import SHIPPED, speed_of
from fsl.inference.planning.synthetic_rates import MODELS, shipped_text

TRACE = RateTrace((0.0, 10.0, 20.0), (8.0, 0.0, 16.0))  # a megabyte a second, none, two


@pytest.mark.parametrize(
    ("start", "size", "end"),
    [
        (0, 3e6, 3),
        (5, 3e6, 8),
        (8, 3e6, 20.5),  # two before the gap, one behind it
        (12, 4e6, 22),
        (100, 2e6, 101),
        (15, 0, 15),
        (0, 10e6, 10),  # just before the gap
    ],
)
def test_a_transfer_takes_what_the_rates_over_time_make_it(start, size, end):
    assert TRACE.transfer_end(start, size) == pytest.approx(end)


def test_a_trace_that_repeats_begins_anew():
    again = RateTrace((0.0, 10.0), (8.0, 0.0), repeat_s=20.0)
    assert [again.at(second) for second in (0, 9.9, 10, 19.9, 20, 35)] == [8, 8, 0, 0, 8, 0]
    assert again.transfer_end(5, 10e6) == pytest.approx(25)
    assert again.transfer_end(0, 25e6) == pytest.approx(45)
    assert again.transfer_end(0, 30e6) == pytest.approx(50)  # and not when the third round ends
    assert again.mean(40) == pytest.approx(4)


def test_a_transfer_over_a_link_that_stays_away_never_ends():
    assert RateTrace((0.0, 1.0), (8.0, 0.0)).transfer_end(0, 2e6) == math.inf
    assert RateTrace((0.0, 1.0), (0.0, 0.0), repeat_s=2).transfer_end(0, 1) == math.inf
    assert RateTrace.constant(math.inf).transfer_end(3, 1e9) == 3


@pytest.mark.parametrize("repeat_s", [None, 2.0])
def test_what_begins_never_ends_never(repeat_s):
    assert RateTrace((0.0, 1.0), (8.0, 4.0), repeat_s=repeat_s).transfer_end(math.inf, 2e6) == math.inf


def test_a_trace_that_repeats_for_years_is_not_walked_through():
    trickle = RateTrace((0.0, 1.0), (0.0, 8e-6), repeat_s=2.0)  # a byte every second second
    assert trickle.transfer_end(0.5, 1e9) == pytest.approx(2e9)
    assert trickle.transfer_end(1.5, 10.25) == pytest.approx(21.75)
    assert trickle.transfer_end(0.0, 0.5) == pytest.approx(1.5)


@pytest.mark.parametrize("second", [-1.0, math.nan, math.inf])
def test_a_second_that_no_trace_has_is_refused(second):
    with pytest.raises(ConfigError, match="second="):
        RateTrace((0.0, 1.0), (8.0, 4.0), repeat_s=2.0).at(second)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf])
def test_a_mean_over_no_time_or_for_ever_is_refused(seconds):
    with pytest.raises(ConfigError, match="seconds="):
        TRACE.mean(seconds)


def test_a_link_profiles_trace_may_begin_at_its_first_second():
    profile = LinkProfile("l", 8.0, 16.0, trace=[[0, 0.5], [12, 2.0]])
    assert RateTrace.of_link(profile) == RateTrace((0.0, 12.0), (4.0, 16.0))


@pytest.mark.parametrize("repeat_s", [None, 25.0])
def test_a_link_profiles_own_replay_agrees(repeat_s):
    profile = LinkProfile("l", 8.0, 16.0, trace=[[5, 0.5], [12, 0.0], [20, 2.0]], repeat_s=repeat_s)
    for way, mbit in (("up", 8.0), ("down", 16.0)):
        trace = RateTrace.of_link(profile, way)
        for start in (0, 4.5, 11, 13, 21, 40):
            assert trace.at(start) == pytest.approx(profile.uplink(start) * 8e-6 * mbit / 8)
            for size in (1e5, 3e6, 3e7):
                assert trace.transfer_end(start, size) == pytest.approx(start + profile.seconds(size, mbit, start))


def test_later_never_ends_sooner():
    ends = [TRACE.transfer_end(start / 4, 3e6) for start in range(100)]
    assert ends == sorted(ends)


def test_a_csv_is_read_with_or_without_a_head(tmp_path):
    for text in ("second,mbit\n0,8\n10,0\n20,16\n", "# mine\n0,8\n\n10,0\n20,16"):
        (tmp_path / "trace.csv").write_text(text)
        assert RateTrace.read(tmp_path / "trace.csv") == TRACE


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("second,mbit\n0,8\n10,x", "'10,x' is no line of second,mbit"),
        ("0,8,1\n0,9", "'0,8,1' is no line of second,mbit"),
        ("second,mbit", "a trace of 0 seconds and 0 values"),
        ("second,mbit\nmore,text\n0,9", "'more,text' is no line of second,mbit"),
        ("", "a trace of 0 seconds"),
        ("0,8\n0,9", "seconds 0.0, 0.0.*must rise from 0"),
        ("1,8", "must rise from 0"),
        ("0,-1", "has the value -1.0"),
        ("0,nan", "has the value nan"),
        ("1" * 200_000, "is no CSV of second,mbit: field larger"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_its_name(text, line, tmp_path):
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ConfigError, match=line) as refused:
        RateTrace.read(tmp_path / "trace.csv")
    assert "trace.csv" in str(refused.value)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        RateTrace.read(tmp_path / "nowhere.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        RateTrace.read(tmp_path / "bytes.csv")
    with pytest.raises(ConfigError, match="repeat_s=5"):
        RateTrace((0.0, 10.0), (1.0, 2.0), repeat_s=5)
    with pytest.raises(ConfigError, match="repeat_s=10"):
        RateTrace((0.0, 10.0), (1.0, 2.0), repeat_s=10)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_traces_are_drawn_by_the_model_that_their_head_names_and_called_synthetic(name):
    trace = RateTrace.shipped(name)
    assert trace == MODELS[name].drawn(300, 0)
    assert shipped_text(name).startswith("# synthetic, no measurement")
    profile = {"wifi": "wifi_75", "lte": "lte", "5g": "nr5g"}[name]
    assert MODELS[name].level_mbit == load_profile("link", profile).up_mbit


def test_equal_seeds_draw_equal_rates_and_others_do_not():
    model = RateModel(level_mbit=10, spread=0.5, memory=0.9, regime_s=20, levels=(1.0, 0.2))
    assert model.drawn(50, 3) == model.drawn(50, 3)
    assert model.drawn(50, 3) != model.drawn(50, 4)


def test_rates_wander_around_their_level_as_long_as_the_model_says():
    import numpy as np

    model = RateModel(level_mbit=10, spread=0.5, memory=0.9, regime_s=1e9)
    logs = np.log(np.array(model.drawn(200_000, 0).values) / 10) + 0.5**2 / 2
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(0.5, rel=0.03)
    assert np.corrcoef(logs[:-1], logs[1:])[0, 1] == pytest.approx(0.9, abs=0.01)


def test_a_slow_link_is_drawn_as_no_dead_one():
    drawn = RateModel(level_mbit=1e-4, spread=0.1, memory=0.5, regime_s=5).drawn(20, 0).values
    assert drawn == pytest.approx([1e-4] * 20, rel=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level_mbit": 0},
        {"level_mbit": math.inf},
        {"memory": 1.0},
        {"regime_s": 0},
        {"levels": ()},
        {"levels": (1.0, math.inf)},
        {"spread": -1},
        {"spread": math.inf},
    ],
)
def test_a_model_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="must be above 0"):
        RateModel(**{"level_mbit": 1, "spread": 0, "memory": 0, "regime_s": 1, **wrong})


def test_the_speed_of_an_edge_is_what_its_load_leaves():
    speed = speed_of(RateTrace((0.0, 1.0), (0.0, 0.75)))
    assert speed.until(0, 2) == pytest.approx(5)  # one second at full speed, the rest at a quarter
    again = speed_of(RateTrace((0.0, 1.0), (0.0, 0.75), repeat_s=2.0))
    assert again.until(0, 2) == pytest.approx(2.75)
    with pytest.raises(ConfigError, match="load 1"):
        speed_of(RateTrace.constant(1.0))
