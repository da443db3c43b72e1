"""`fsl-compare-inference`: every policy beside every other, from finished runs."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fsl.simulations.comparing.compare_figure import draw_comparison
from fsl.simulations.comparing.compare_options import read_options
from fsl.simulations.comparing.compared_exits import compared_exits
from fsl.simulations.comparing.compared_streams import ComparedRow, compared
from fsl.simulations.comparing.contender import bottleneck_names, contender, scored_rows
from fsl.simulations.fsl_compare_inference import command
from fsl.simulations.fsl_export import read_trained_run
from fsl.simulations.fsl_simulate import command as simulate

from fsl.data import TaskData, recompress
from fsl.errors import ConfigError
from fsl.inference.comparison import CutWay, PolicyFigures
from fsl.inference.exits import ExitModel, save_exits

SMALL = ["model=lenet", "data=digits", "model.cut=pool1", "devices=2", "rounds=1", "samples_per_device=32"]
UNITS = "{_target_: fsl.codecs.Units, rates: [{channels: 4, stride: 1, step: 0.5}, {channels: 2, stride: 2, step: 1}]}"
QUICK = ["repetitions=2", "rows=50", "requests=20", "points=pool1,pool2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A plain run, one with units of two rates, and exits of the plain one's model."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("plain", []), ("units", [f"codec.up={UNITS}", "codec.down=identity"])):
        assert simulate([*SMALL, *more, f"hydra.run.dir={folder / name}"]) == 0
    run = read_trained_run(folder / "plain")
    model = ExitModel(run.trained.whole(None), {"pool1": "linear"}, run.trained.inputs().three)
    save_exits(folder / "exits", model, thresholds=0.2)
    return folder


@pytest.fixture(scope="module")
def done(runs):
    out = runs / "out"
    given = [f"run={runs / 'plain'}", f"bottlenecks={runs / 'units'}", f"exits={runs / 'exits'}", "codecs=int8"]
    more = ["images=jpeg:75", "rates=0.05,100", "loads=0,0.5", "device=pi4", "link=lte", "device_speed=0.01"]
    assert command([*given, *more, *QUICK, f"out={out}"]) == 0
    with (out / "comparison.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of(rows, policy, link="100", load="0.0"):
    (row,) = (row for row in rows if (row["policy"], row["link"], row["load"]) == (policy, link, load))
    return row


def test_each_policy_stands_in_the_table_for_each_link_and_load(done, runs):
    each = {(row["link"], row["load"]) for row in done}
    assert each == {(link, load) for link in ("0.05", "100") for load in ("0.0", "0.5")}
    names = [row["policy"].partition(" (")[0] for row in done if (row["link"], row["load"]) == ("100", "0.0")]
    assert names == [
        "local", "remote", "remote, uint8", "remote, jpeg:75", "best static", "dynamic, rate told",
        "dynamic, rate estimated", "best static, int8", "dynamic, int8 too", "best in time",
        "bottleneck units rate 0", "bottleneck units rate 1", "rates of units in time", "exits, cut at pool1",
    ]  # fmt: skip
    assert {path.name for path in (runs / "out").iterdir()} == {
        "common.csv", "common.json", "common.png",
        "comparison.csv", "comparison.md", "comparison.png",
    }  # fmt: skip
    assert (runs / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_policies_that_change_no_answer_have_the_models_accuracy(done):
    exact = {row["quality"] for row in done if row["exact"] == "True"}
    assert len(exact) == 1
    assert {row["policy"].partition(" (")[0] for row in done if row["exact"] == "True"} == {
        "local", "remote", "remote, uint8", "best static", "dynamic, rate told", "dynamic, rate estimated",
    }  # fmt: skip


def test_bytes_are_those_that_cross(done):
    assert float(of(done, "local")["up_bytes"]) == 0
    assert float(of(done, "remote")["up_bytes"]) == 8 * 8 * 4
    assert float(of(done, "remote, uint8")["up_bytes"]) == 8 * 8
    assert float(of(done, "bottleneck units rate 0")["up_bytes"]) == 4 * 4 * 4
    assert float(of(done, "bottleneck units rate 1")["up_bytes"]) == 2 * 2 * 2
    assert "pool1" in of(done, "bottleneck units rate 1")["choices"]


def test_the_best_static_choice_is_beaten_by_no_exact_one(done):
    for link in ("0.05", "100"):
        own = [row for row in done if (row["link"], row["load"]) == (link, "0.0")]
        (best,) = (row for row in own if row["policy"].startswith("best static ("))
        assert all(float(best["mean"]) <= float(of(done, name, link)["mean"]) for name in ("local", "remote, uint8"))


def test_a_loaded_edge_is_slower_for_those_who_ask_it(done):
    assert float(of(done, "remote", load="0.5")["mean"]) > float(of(done, "remote")["mean"])
    assert of(done, "local", load="0.5")["mean"] == of(done, "local")["mean"]


def test_weights_on_the_device_count_front_units_and_exits(done):
    sizes = {name: int(of(done, name)["encoder_bytes"]) for name in ("local", "remote")}
    assert sizes["remote"] == 0
    assert sizes["local"] > int(of(done, "exits, cut at pool1")["encoder_bytes"]) > 0
    rates = [int(of(done, f"bottleneck units rate {k}")["encoder_bytes"]) for k in (0, 1)]
    assert sizes["local"] > rates[0] > rates[1] > 0


def test_energy_is_there_where_the_device_is_named(done, runs, capsys):
    assert all(float(row["joules"]) > 0 for row in done)
    assert command([f"run={runs / 'plain'}", *QUICK, "images=none", "rates=1", f"out={runs / 'bare'}"]) == 0
    with (runs / "bare" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["joules"] for row in rows} == {""}
    assert "remote, uint8" not in {row["policy"] for row in rows}  # images=none
    assert "energy" not in capsys.readouterr().out


def test_a_link_that_carries_nothing_gets_no_numbers(runs, capsys):
    given = [f"run={runs / 'plain'}", *QUICK, "images=none", "rates=0", "loads=0,0.0", "device=pi4"]
    assert command([*given, f"out={runs / 'none'}"]) == 0
    with (runs / "none" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    remote, local = (of(rows, name, link="0") for name in ("remote", "local"))  # one each: a load counts once
    assert (remote["answered"], remote["in_time"], remote["overloaded"]) == ("0.0", "0.0", "False")
    assert (local["answered"], local["overloaded"]) == ("1.0", "False")
    said = capsys.readouterr().out
    assert "inf" not in said.replace("inference", "")
    assert "overloaded" not in said


def test_a_codec_that_is_better_by_chance_is_not_worth_waiting_for(runs):
    """Here the device alone is quickest, and no answer is better than the unsplit model's but by chance."""
    options = read_options([f"run={runs / 'plain'}", *QUICK, "codecs=int8", "images=none", "rates=1"])
    plain = contender(options.run, options, bottleneck=False)
    lucky = {
        choice: replace(one, score=replace(one.score, accuracy=1.0)) if choice.codec == "int8" else one
        for choice, one in plain.answers.items()
    }
    (row,) = (
        row.figures
        for row in compared(options, replace(plain, answers=lucky), [], None)
        if row.figures.policy == "best in time"
    )
    assert row.choices == {"output": options.requests}


def test_a_slower_device_writes_more_slowly_and_a_quicker_edge_reads_more_quickly(runs):
    options = read_options([f"run={runs / 'plain'}", *QUICK, "codecs=int8", "device_speed=0.5", "edge_speed=4"])
    found = contender(options.run, options, bottleneck=False)
    for choice, answer in found.answers.items():
        if answer.encoding is not None:
            parts = found.costs.parts(choice)
            assert parts.encode == pytest.approx(2 * answer.encoding.encode_seconds)
            assert parts.decode == pytest.approx(answer.encoding.decode_seconds / 4)


def test_exits_are_computed_at_the_devices_speed_until_the_cut_and_then_at_the_edges(runs):
    more = ["exits=" + str(runs / "exits"), "threshold=0.999", "device_speed=0.5", "edge_speed=4"]
    options = read_options([f"run={runs / 'plain'}", *QUICK, *more])
    found = compared_exits(contender(options.run, options, bottleneck=False), options)
    asked, here = found.requests("pool1"), found.seconds
    crossing = asked.crosses.index(True)
    assert asked.device[crossing] == pytest.approx(2 * (here.stages[0] + here.heads[0]))
    assert asked.edge[crossing] == pytest.approx(here.stages[1] / 4)
    front, _ = found.model.points.parts("pool1")
    assert len(found.weights("pool1")) == len(front.state_dict()) + len(found.model.heads[0].state_dict())


def test_round_trip_servers_and_threads_are_those_of_the_command(runs, monkeypatch):
    """Requests come all at once to an edge so slow that they wait for nothing else."""
    given = [f"run={runs / 'plain'}", *QUICK, "images=none", "rates=1000", "per_second=1e6", "edge_speed=0.0001"]
    options, threads = read_options([*given, "codecs=int8", "threads=2"]), []
    monkeypatch.setattr(CutWay, "crossed", _noting(threads, CutWay.crossed))
    plain = contender(options.run, options, bottleneck=False)
    assert set(threads) == {2}
    rows = {
        name: next(row.figures.mean for row in compared(changed, plain, [], None) if row.figures.policy == "remote")
        for name, changed in {
            "usual": options,
            "two": replace(options, servers=2),
            "far": replace(options, rtt_seconds=5.0),
        }.items()
    }
    assert rows["two"] < 0.7 * rows["usual"]
    assert rows["far"] == pytest.approx(rows["usual"] + 5.0 - options.rtt_seconds, rel=1e-3)


def _noting(threads, crossed):
    return lambda *given: threads.append(torch.get_num_threads()) or crossed(*given)


def test_rates_share_the_front_and_nothing_else(runs):
    found = contender(runs / "units", read_options([f"run={runs / 'plain'}", *QUICK]), "units", bottleneck=True)
    first, second = (found.weights()[choice].keys() for choice in found.own)
    front, _ = found.points.parts("pool1")
    assert len(first & second) == len(front.state_dict())
    assert first - second
    assert second - first


def test_rows_that_are_scored_are_told(runs):
    task = read_trained_run(runs / "plain").data
    few = [task.train.subset(torch.arange(count)) for count in (2, 3, 4)]
    parts = replace(task, train=few[0], validation=few[1], test=few[2])
    told = [scored_rows(parts), scored_rows(replace(parts, test=None))]
    told.append(scored_rows(replace(parts, test=None, validation=None)))
    assert [len(rows) for rows, _ in told] == [4, 3, 2]
    assert [words.split(",")[0] for _, words in told] == [
        "test rows", "validation rows", "rows that the model was trained on",
    ]  # fmt: skip


def test_a_bottleneck_of_other_rows_is_refused(runs, capsys):
    more = ["data.test_share=0.4", f"codec.up={UNITS}", "codec.down=identity", f"hydra.run.dir={runs / 'others'}"]
    assert simulate([*SMALL, *more]) == 0
    capsys.readouterr()
    assert command([f"run={runs / 'plain'}", f"bottlenecks={runs / 'others'}", *QUICK]) == 2
    assert "its rows are others than those of run=" in capsys.readouterr().err


def test_images_bytes_are_those_of_the_scored_rows(runs, done):
    rows = read_trained_run(runs / "plain").data.test.subset(torch.arange(50))
    task = read_trained_run(runs / "plain").data
    scored = TaskData(task.name, rows, None, task.classes, scaling=task.scaling)
    assert float(of(done, "remote, jpeg:75")["up_bytes"]) == pytest.approx(recompress(scored, "jpeg", 75).bytes)


@pytest.mark.parametrize(("quality", "height"), [("loss", 0.5), ("accuracy", -50.0)])
def test_figures_have_losses_as_they_are(quality, height):
    """Minus a loss that is below zero is above: nobody may take it for an accuracy."""
    one = PolicyFigures(
        policy="mine", quality=-0.5, up_bytes=1.0, down_bytes=0.0, mean=math.inf, p50=0.1, p90=0.2, p99=math.inf,
        answered=0.9, in_time=0.9, throughput=1.0, round_trips=1.0, joules=None, encoder_bytes=0, switches=0,
        overloaded=False, choices={},
    )  # fmt: skip
    (panel, _) = draw_comparison([ComparedRow("1", 0.0, one, True)], quality).axes[:2]
    assert [list(line.get_ydata()) for line in panel.get_lines()] == [[height]]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "run must be given"),
        (["run=nowhere"], "nowhere"),
        (["run=RUNS/units"], "give it as bottlenecks=RUNS/units"),
        (["run=RUNS/plain", "bottlenecks=RUNS/plain"], "this run has no trained codec"),
        (["run=RUNS/plain", "codecs=nothing"], "nothing"),
        (["run=RUNS/plain", "points=nowhere"], "nowhere"),
        (["run=RUNS/plain", "images=png:3"], "images=png:3"),
        (["run=RUNS/plain", "rates=quick"], "rates: 'quick'"),
        (["run=RUNS/plain", "loads=1"], "loads: '1'"),
        (["run=RUNS/plain", "requests=0"], "requests=0"),
        (["run=RUNS/plain", "threshold=0.5"], "threshold: rows leave by exits"),
        (["run=RUNS/plain", "colour=red"], "colour"),
        (["run=RUNS/plain", "codecs=identity"], "codecs=identity: what crosses as it is stands in the table anyway"),
        (["run=RUNS/plain", "codecs=bottleneck"], "codecs=bottleneck: codec bottleneck is trained"),
        (["run=RUNS/plain", "codecs=c3"], "conv1 by c3: ratio="),
        (["run=RUNS/plain", "front=0"], "front=0: this run has one model for all its devices; leave front out"),
        (["run=RUNS/plain", "out=RUNS/plain/model.safetensors"], "it is a file; give a folder"),
        (["run=RUNS/plain", "device=pi4", "device.power_idle_watts=null"], "energy needs the power of both"),
        (["run=RUNS/plain", "images=jpeg:²"], "images=jpeg:²"),
        (["run=RUNS/plain", "rates=nan"], "nan"),
        (["run=RUNS/plain", "rates=-1"], "-1"),
    ],
)
def test_bad_input_gets_one_line(arguments, line, runs, capsys):
    assert command([*(one.replace("RUNS", str(runs)) for one in arguments), "repetitions=2"]) == 2
    said = capsys.readouterr().err
    assert line.replace("RUNS", str(runs)) in said
    assert said.count("\n") == 1


def test_exits_of_another_model_are_refused(runs, capsys):
    assert simulate([*SMALL, "seed=1", f"hydra.run.dir={runs / 'another'}"]) == 0
    given = [f"run={runs / 'another'}", f"exits={runs / 'exits'}", *QUICK]
    assert command(given) == 2
    assert "they were saved for another model than run=" in capsys.readouterr().err


def test_runs_are_called_by_what_tells_them_apart():
    pairs = {"a/0": "a/0", "b/0": "b/0"}
    assert bottleneck_names(tuple(map(Path, pairs))) == {Path(path): name for path, name in pairs.items()}
    assert bottleneck_names((Path("runs/small"), Path("runs/large"))) == {
        Path("runs/small"): "small", Path("runs/large"): "large",
    }  # fmt: skip
    assert bottleneck_names(()) == {}
    with pytest.raises(ConfigError, match="given twice"):
        bottleneck_names((Path("a"), Path("./a")))


def test_a_round_trip_is_twice_the_links_latency():
    assert read_options(["run=mine", "link=lte"]).rtt_seconds == pytest.approx(0.055)


def test_help_tells_the_options(capsys):
    assert command(["--help"]) == 0
    assert "usage: fsl-compare-inference run=FOLDER" in capsys.readouterr().out
