"""`fsl-serve demo`: one command from a model to a summary, on links as traces tell and devices as slow as they are."""

import copy
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
import torch
from fsl.simulations.fsl_serve import command
from fsl.simulations.fsl_simulate import command as simulate
from fsl.simulations.serving.demo_edge import DemoEdge
from fsl.simulations.serving.demo_links import demo_trace, from_second, with_tunnel
from fsl.simulations.serving.demo_model import demo_model
from fsl.simulations.serving.demo_options import DemoOptions
from fsl.simulations.serving.slow_device import slow_down

from fsl.deployment.processes import wait_until
from fsl.errors import ConfigError, RunError
from fsl.inference import SplitPoints
from fsl.inference.exits import ExitModel, save_exits
from fsl.inference.planning import RateTrace
from tests.helpers.places import ROOT
from tests.helpers.served import batch, model

ONCE = RateTrace((0.0, 2.0, 5.0), (1.0, 2.0, 3.0))
AGAIN = RateTrace((0.0, 2.0, 5.0), (1.0, 2.0, 3.0), repeat_s=7.0)
TENTHS = [number / 10 + 0.05 for number in range(200)]


@pytest.mark.parametrize("second", [0.0, 1.0, 2.0, 3.5, 5.0, 6.0, 12.5])
@pytest.mark.parametrize("trace", [ONCE, AGAIN], ids=["once", "again"])
def test_a_trace_from_a_second_on_is_the_trace_later(trace, second):
    later = from_second(trace, second)
    assert [later.at(at) for at in TENTHS] == [trace.at(at + second) for at in TENTHS]


@pytest.mark.parametrize(("begins", "seconds"), [(1.0, 0.5), (0.0, 2.0), (1.0, 5.0), (4.5, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("trace", [ONCE, RateTrace(ONCE.seconds, ONCE.values, 100.0)], ids=["once", "again"])
def test_a_tunnel_has_rate_0_and_nothing_else_changes(trace, begins, seconds):
    dark = with_tunnel(trace, begins, seconds)
    expected = [0.0 if begins <= at < begins + seconds else trace.at(at) for at in TENTHS]
    assert [dark.at(at) for at in TENTHS] == expected


def test_layers_of_a_slow_device_take_the_seconds_of_their_multiply_adds():
    slept: list[float] = []
    slow = model("LeNet")
    inputs = batch("LeNet", 2)
    macs = 2 * (28 * 28 * 6 * 25 + 14 * 14 * 16 * 150 + 784 * 120 + 120 * 84 + 84 * 10)
    slow_down(slow, 1e4, slept.append)
    with torch.no_grad():
        slow(inputs)
    assert len(slept) == 5
    assert 0.99 * macs / 1e4 < sum(slept) <= macs / 1e4


def test_a_slow_device_computes_the_same_at_every_point():
    plain, slow = model("LeNet"), copy.deepcopy(model("LeNet"))
    slept: list[float] = []
    slow_down(slow, 1e4, slept.append)
    inputs = batch("LeNet")
    points, same = SplitPoints(plain, inputs), SplitPoints(slow, inputs)
    assert (points.digest(), points.names) == (same.digest(), same.names)
    for point in points.names:
        same.head(point, inputs)  # the first time it tries the parts
        slept.clear()
        outputs = same.tail(point, same.head(point, inputs))
        assert torch.equal(outputs, points.tail(point, points.head(point, inputs)))
        assert len(slept) == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["links=4g"], "links=4g: give wifi, lte, 5g, or the CSV file of a trace"),
        (["links=gone.csv"], "gone.csv cannot be read"),
        (["links=" + ",".join(["lte"] * 7)], "there is a device for each, and at most 6"),
        (["seconds=0"], "seconds=0: it must be a number above 0"),
        (["minutes=1"], "there is no option 'minutes'"),
        (["page=0.0.0.0:8050"], "page=0.0.0.0:8050: give host:port of this machine alone"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_made(tmp_path, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert command(["demo", *arguments]) == 2
    said = capsys.readouterr()
    assert line in said.err
    assert (len(said.err.splitlines()), said.out) == (1, "")
    assert list(tmp_path.iterdir()) == []


def test_a_busy_port_is_one_line_before_anything_is_made(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert command(["demo", f"run={tmp_path / 'run'}", f"page=127.0.0.1:{port}"]) == 2
    said = capsys.readouterr()
    assert f"fsl-serve: page=127.0.0.1:{port}: the page cannot be served there (Address already in use)" in said.err
    assert (len(said.err.splitlines()), said.out) == (1, "")
    assert not (tmp_path / "run").exists()


def test_each_device_has_a_trace_of_its_own():
    options = DemoOptions.read(["links=lte,lte", "tunnel=2", "seconds=40"])
    first, second = options.trace(0), options.trace(1)
    assert (first.at(9.9), first.at(10.0), first.at(11.9)) == (demo_trace("lte").at(9.9), 0.0, 0.0)
    assert second.at(0.0) == demo_trace("lte").at(20.0)


def test_what_is_no_trace_is_refused():
    with pytest.raises(ConfigError, match="links=3g: give wifi, lte, 5g, or the CSV file"):
        demo_trace("3g")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with exits, and a folder without any."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    smoke = ("experiment=smoke", "devices=2", "rounds=1", "samples_per_device=16", "model.hidden=[16, 8]")
    assert simulate([*smoke, f"hydra.run.dir={folder}"]) == 0
    found = demo_model(folder)
    whole, rows = found.run.trained.whole(None), found.run.trained.inputs().rows
    save_exits(folder, ExitModel(whole, {"stage1": "linear"}, rows), thresholds=0.2)
    return folder


def started(run, *options: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "fsl.simulations.fsl_serve", "demo", f"run={run}", "page=127.0.0.1:0", *options]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def line_with(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    return next(line for line in process.stdout if word in line)


@pytest.mark.slow
def test_ctrl_c_ends_all_with_a_summary(run):
    with started(run, "seconds=600") as process:
        try:
            edge = line_with(process, "serving").split(" at ")[1].split(",")[0]
            page = line_with(process, "the page is at").split()[4]
            assert wait_until(lambda: all(device["at_edge"] for device in figures(page)["devices"]), 30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "fsl-serve: interrupted\n")
    asked = [int(count) for count in re.findall(r"device \d.*: (\d+) asked, ", out)]
    assert len(asked) == 2
    assert min(asked) > 0
    assert re.search(r"device 2 \(exits\): .* rows by exit: \d+ ", out)
    assert out.splitlines()[-1] == f"{sum(asked)} questions, none lost"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(edge.split(":"), timeout=5)


@pytest.mark.slow
def test_an_edge_ends_when_whoever_started_it_is_gone(run):
    """As after SIGKILL, where nobody tells it: its end of a pipe closes."""
    edge = DemoEdge(run, "all")
    assert "serving MLP" in edge.said
    edge._process.stdin.close()
    assert edge._process.wait(30) == 143
    edge._process.stdout.close()


@pytest.mark.shows
def test_an_edge_that_cannot_serve_says_why(tmp_path):
    with pytest.raises(RunError, match=f"the edge has ended: fsl-serve: {tmp_path}"):
        DemoEdge(tmp_path, "all")


def figures(page: str) -> dict:
    with urllib.request.urlopen(f"{page}figures", timeout=10) as answer:
        return json.load(answer)


@pytest.mark.shows
def test_splits_change_within_a_minute_and_a_second_run_uses_the_same_model(tmp_path):
    for seconds in (60, 5):
        with started(tmp_path / "new" / "run", f"seconds={seconds}") as process:
            out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        assert ("training a LeNet" in out) == (seconds == 60)
        assert out.splitlines()[-1].endswith("questions, none lost")
        if seconds == 60:
            switches = [int(count) for count in re.findall(r"(\d+) switches", out)]
            assert min(switches) >= 1
            assert sum(switches) >= 4
            assert {"input", "pool1", "output"} <= set(re.findall(r"split (\w+)", out))
            assert re.search(r"device 1: .*fallbacks: \d+ late", out)
            assert re.search(r"device 2 \(exits\): .*rows by exit: .*\d+ pool1", out)
