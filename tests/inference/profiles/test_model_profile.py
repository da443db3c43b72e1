"""A profile's file says all of it, and another machine reads it with checks."""

import json
from dataclasses import replace

import pytest

from fsl.errors import ConfigError, SplitError
from fsl.inference.profiles import SecondsSpread, SplitCheck, read_profile
from tests.helpers.small_profiles import small_profile


@pytest.fixture
def profile():
    return small_profile((0.0, 0.1, 0.3), (0.3, 0.2, 0.0), (100, 40, 8))


@pytest.fixture
def written(profile, tmp_path):
    profile.write(tmp_path / "profile.json")
    return tmp_path / "profile.json"


def changed(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return path


def test_what_is_read_is_what_was_written(profile, written):
    assert read_profile(written) == profile
    assert read_profile(str(written)) == profile


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda v: v.update(batch=0), "batch=0"),
        (lambda v: v.update(threads=0), "threads=0"),
        (lambda v: v.update(repetitions=0), "repetitions=0"),
        (lambda v: v.update(batch="1"), r"Expected `int`, got `str` - at `\$.batch`"),
        (lambda v: v.update(format=2), "format"),
        (lambda v: v.update(more=1), "ModelProfile has the fields"),
        (lambda v: v.pop("digest"), "digest"),
        (lambda v: v["points"][1].update(crossing_bytes=-1), "crossing_bytes=-1"),
        (lambda v: v["points"][1].update(crossing_shared_bytes=41), "crossing_shared_bytes=41: they are among 40"),
        (lambda v: v["points"][1]["head"]["seconds"].update(p50=float("nan")), "p50=nan"),
        (lambda v: v["points"][1]["head"]["seconds"].update(p90=0.01), "p50, p90, p99: they must not fall"),
        (lambda v: v["points"].reverse(), "they go from input to output"),
        (lambda v: v["points"].insert(1, v["points"][1]), "each once"),
        (lambda v: v.update(points=[]), "they go from input to output"),
    ],
)
def test_a_file_that_tells_what_cannot_be_is_refused_in_a_line(written, change, line):
    with pytest.raises(ConfigError, match=line) as refused:
        read_profile(changed(written, change))
    assert str(refused.value).startswith(f"{written} is no profile of fsl-profile: ")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_none_is_refused_in_a_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_profile(tmp_path / "nowhere.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ConfigError, match="is no profile"):
        read_profile(tmp_path / "text.json")
    (tmp_path / "large.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        read_profile(tmp_path / "large.json")


def test_a_point_is_found_by_its_name(profile):
    assert profile.point("cut1").crossing_bytes == 40
    assert (profile.elements(), profile.bytes()) == ({"cut1": 10}, {"cut1": 40})
    with pytest.raises(SplitError, match="point='cut9': it must be one of input, cut1, output"):
        profile.point("cut9")


def test_energy_of_a_head_is_power_times_its_mean_seconds_where_power_is_known(profile, written):
    assert profile.head_joules("cut1") is None
    known = read_profile(changed(written, lambda values: values.update(power_active_watts=6.0)))
    assert known.head_joules("cut1") == pytest.approx(0.6)
    later = replace(known.points[1].head, seconds=SecondsSpread(mean=0.5, p50=0.1, p90=0.2, p99=4.0))
    points = (known.points[0], replace(known.points[1], head=later), known.points[2])
    assert replace(known, points=points).head_joules("cut1") == pytest.approx(3.0)


def test_a_profile_of_too_many_points_is_refused(profile):
    many = tuple(replace(profile.points[1], name=f"cut{number}") for number in range(9_999))
    with pytest.raises(ConfigError, match="there are 10001 points; a profile has 10000 at most"):
        replace(profile, points=(profile.points[0], *many, profile.points[2]))


def test_a_faster_machine_takes_less_of_everything_that_takes_time(profile):
    faster = profile.faster(10)
    assert faster.point("cut1").tail.seconds.p90 == pytest.approx(0.02)
    assert faster.point("cut1").head.seconds.p90 == pytest.approx(0.01)
    assert faster.whole.mean == pytest.approx(0.03)
    assert faster.bytes() == profile.bytes()
    assert "10 times as fast as" in faster.machine
    check = SplitCheck("cut1", 0.06, 0.05, 0.0, 0.0, 0.1)
    measured = replace(profile, checks=(check,), power_active_watts=6.0).faster(10)
    assert (measured.checks, measured.power_active_watts) == ((), None)  # nobody measured them on that machine
    with pytest.raises(ConfigError, match="times=0"):
        profile.faster(0)


def test_percentiles_are_those_of_the_seconds():
    spread = SecondsSpread.of([float(second) for second in range(101)])
    assert (spread.mean, spread.p50, spread.p90, spread.p99) == (50.0, 50.0, 90.0, 99.0)
    assert SecondsSpread.of([1.0, 1.0, 7.0]).mean == 3.0


def test_a_check_tells_by_what_share_two_parts_take_longer_than_the_whole():
    assert SplitCheck("cut1", 0.06, 0.05, 0.0, 0.0, 0.1).excess == pytest.approx(0.1)
