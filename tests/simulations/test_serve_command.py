"""`fsl-serve`: a finished run's model answers over the wire, from the command line."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fsl.simulations.fsl_export import read_trained_run
from fsl.simulations.fsl_serve import command
from fsl.simulations.fsl_simulate import command as simulate
from fsl.simulations.serving.serve_options import ServeOptions
from fsl.simulations.serving.served_run import served_run

from fsl.inference.exits import ExitModel, save_exits
from fsl.inference.serving import InferenceDevice, InferenceEdge
from fsl.inference.serving.serving_tokens import load_operator_public_key
from fsl.metrics.common_metrics import CommonValues
from fsl.round.evaluation import evaluate
from tests.helpers.places import ROOT

pytestmark = pytest.mark.slow
SMOKE = ("experiment=smoke", "devices=2", "rounds=1", "samples_per_device=16", "model.hidden=[6]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose devices share one front, one whose fronts are private, and one with a trained codec at its cut."""
    folder = tmp_path_factory.mktemp("runs")
    given = {"one": (), "private": ("strategy=splitfed_v3",), "coded": ("codec=bottleneck", "model.hidden=[32]")}
    for name, more in given.items():
        assert simulate([*SMOKE, *more, f"hydra.run.dir={folder / name}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_device_prints_the_runs_own_accuracy(runs, capsys):
    run = read_trained_run(runs / "one")
    expected = evaluate([run.trained.whole(None)], run.data.test, run.objective, torch.device("cpu"))
    _, points = served_run(ServeOptions([f"run={runs / 'one'}"], ("run", "points", "front")))
    with InferenceEdge(points) as edge:
        asking = ["device", f"run={runs / 'one'}", f"edge={edge.address}", "insecure=true", "rows=20"]
        assert command([*asking, "metrics=127.0.0.1:0"]) == 0
        said = capsys.readouterr().out
        assert f"edge {edge.address}: open" in said
        assert re.search(r"answers: \d+ at the edge; [\d.]+ a second", said)
        count = len(run.data.test) // 20
        assert edge.figures.outcomes == {"answered": count}
        if count * 20 == len(run.data.test):
            assert f"loss {expected.loss:.4f}, accuracy {expected.accuracy:.4f}" in said
        assert re.search(r"latency: p50 [\d.]+ ms, p90 [\d.]+ ms, p99 [\d.]+ ms", said)
        assert "fallbacks: none" in said
        assert command([*asking, "point=output", "count=3", "data=train", "summary=own.json"]) == 0
        assert "answers: 3 at the device" in capsys.readouterr().out
        assert command([*asking, "summary=asked.json"]) == 0
    own, asked = (CommonValues.of_json(json.loads(Path(n).read_text())["common"]) for n in ("own.json", "asked.json"))
    assert (own.rounds, own.bytes_per_row, own.completed) == (0.0, 0.0, 1.0)
    assert (asked.rounds, asked.completed, asked.memory_bytes) == (1.0, 1.0, own.memory_bytes)
    assert asked.bytes_per_row > 4 * 10  # a row's outputs, and what crosses
    assert 0 < asked.latency_seconds <= asked.latency_p99_seconds


def test_a_device_whose_edge_is_gone_answers_itself_or_says_that_it_cannot(runs, capsys):
    asking = [
        "device",
        f"run={runs / 'one'}",
        "edge=127.0.0.1:9",
        "insecure=true",
        "count=3",
        "deadline=0.05",
        "connect=0",
    ]
    assert command([*asking, "summary=gone.json"]) == 0
    said = capsys.readouterr().out
    assert "answers: 3 at the device" in said
    assert "fallbacks: 3 gone" in said
    assert json.loads(Path("gone.json").read_text())["common"]["completed"] == 0.0
    assert command([*asking, "fallback=false"]) == 1
    assert "without an answer: 3; the last: no edge has answered a question at stage1" in capsys.readouterr().out


def test_rows_leave_by_saved_exits_on_the_device(runs, capsys):
    _, points = served_run(ServeOptions([f"run={runs / 'one'}"], ("run", "points", "front")))
    exits = ExitModel(points.model, {"stage1": "linear"}, points.example)
    save_exits("saved", exits, arguments={"input_shape": points.example.shape[1:], "classes": 10, "hidden": [6]})
    with InferenceEdge(points) as edge:
        asking = ["device", f"run={runs / 'one'}", f"edge={edge.address}", "insecure=true", "rows=10", "count=3"]
        assert command([*asking, "exits=saved", "threshold=0"]) == 0
        assert "exits: 30 rows stage1" in capsys.readouterr().out
        assert edge.figures.outcomes == {}
        assert command([*asking, "exits=saved", "threshold=2"]) == 0
        assert "exits: 30 rows output" in capsys.readouterr().out
        assert edge.figures.outcomes == {"answered": 3}
        assert command([*asking, "exits=saved"]) == 2
        assert "threshold must be given" in capsys.readouterr().err
        assert command([*asking, "threshold=1"]) == 2
        assert "name the folder that has them" in capsys.readouterr().err


def test_private_fronts_are_served_by_their_device(runs, capsys):
    options = ServeOptions([f"run={runs / 'private'}", "front=1", "points=all"], ("run", "points", "front"))
    run, points = served_run(options)
    assert torch.equal(points.model(points.example), run.trained.whole(1)(points.example))
    assert command(["edge", f"run={runs / 'private'}", "address=127.0.0.1:0", "insecure=true"]) == 2
    assert "each device has a front of its own; give device=, one of 0, 1" in capsys.readouterr().err


def test_a_trained_codec_is_a_part_of_the_model_that_is_served(runs):
    options = ServeOptions([f"run={runs / 'coded'}"], ("run", "points", "front"))
    _, points = served_run(options)
    assert points.crossing("stage1").elements < 32  # the codes, and not what the cut gives
    with InferenceEdge(points) as edge, InferenceDevice(points, [edge.address], fallback=False) as device:
        assert torch.equal(device.infer(points.example, point="stage1").outputs, points.model(points.example))


def test_an_edge_is_started_asked_with_a_token_and_ended(runs):
    assert command(["key", "out=keys"]) == 0
    assert command(["token", "key=keys/operator-key.pem", "name=till-3", "out=till.token"]) == 0
    assert Path("keys/operator-key.pem").stat().st_mode & 0o077 == Path("till.token").stat().st_mode & 0o077 == 0
    load_operator_public_key(Path("keys/operator-public.pem"))
    served = ["edge", f"run={runs / 'one'}", "address=127.0.0.1:0", "insecure=true"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fsl.simulations.fsl_serve", *served, "token-key=keys/operator-public.pem"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving MLP \(\w{12}\) at (\S+), points input, stage1, output; Ctrl-C ends it\n", line)
        assert found, line
        asking = ["device", f"run={runs / 'one'}", f"edge={found[1]}", "insecure=true", "count=5", "fallback=false"]
        assert command([*asking, "token=till.token"]) == 0
        assert command([*asking, "deadline=0.1"]) == 1
        process.send_signal(signal.SIGINT)
        said, complained = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said == "questions: 5 answered; 5 batches of 1.0 rows in the mean\n"
    assert complained == "fsl-serve: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "say what to do: edge, device, demo, profile, key, token; none is given"),
        (("serve",), "say what to do: edge, device, demo, profile, key, token; 'serve' is none"),
        (("edge", "run"), "run: write options as name=value: run, points, front, int8, address"),
        (("edge", "adress=x"), "there is no option 'adress'; did you mean 'address'?"),
        (("edge", "run=x", "run=y"), "run: it is given twice"),
        (("edge", "run="), "run=: give it a value, or leave it out"),
        (("edge", "run=nowhere"), "an edge needs cert and cert-key"),
        (("edge", "run=nowhere", "insecure=yes"), "insecure=yes: it must be true or false"),
        (("edge", "run=nowhere", "insecure=true", "cert=x"), "insecure=true with cert: nothing would be encrypted"),
        (("edge", "run=nowhere", "insecure=true", "address=127.0.0.1:0"), "nowhere is no run of fsl-simulate"),
        (("edge", "insecure=true", "address=127.0.0.1:0"), "run must be given"),
        (("edge", "insecure=true", "max-rows=0"), "max-rows=0: it must be a whole number from 1 on"),
        (("edge", "insecure=true", "max-wait=x"), "max-wait=x: it must be a number from 0 on"),
        (("edge", "insecure=true", "token-key=nowhere"), "token-key=nowhere: it cannot be read"),
        (("device", "run=x", "insecure=true"), "edge must be given: host:port"),
        (("device", "run=x", "insecure=true", "edge=a:1,,b:2"), "edge=a:1,,b:2: give one or several, with commas"),
        (("device", "run=x", "edge=a:1", "rate=0"), "rate=0: it must be a number above 0"),
        (("token", "name=x"), "key must be given"),
        (("token", "key=nowhere", "name=x"), "key=nowhere: it cannot be read"),
        (("key", "days=3"), "there is no option 'days'"),
    ],
)
def test_a_mistake_is_one_line(arguments, line, capsys):
    assert command(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fsl-serve: {line}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("edge", "address=0.0.0.0:0"), "listen=0.0.0.0:0: without TLS an edge serves only its own machine"),
        (("edge", "address=127.0.0.1:0", "points=stage9"), "cut='stage9' cannot be made"),
        (("device", "edge=example.org:9090"), "edges: example.org:9090 is another machine, and without TLS"),
        (("device", "edge=127.0.0.1:9", "data=validation"), "data=validation: this run's data set has none"),
        (("device", "edge=127.0.0.1:9", "data=all"), "data='all': allowed are test, validation, train"),
        (("device", "edge=127.0.0.1:9", "point=stage9"), "point='stage9': it must be one of input, stage1, output"),
        (("device", "edge=127.0.0.1:9", "codec=int9"), "codec.up=int9"),
    ],
)
def test_a_mistake_about_a_run_is_one_line(arguments, line, runs, capsys):
    assert command([*arguments, f"run={runs / 'one'}", "insecure=true"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fsl-serve: {line}")
    assert said.count("\n") == 1


def test_a_key_that_is_there_is_never_replaced(capsys):
    assert command(["key"]) == 0
    assert command(["key"]) == 2
    assert "operator-key.pem is there already, and tokens may be signed by it" in capsys.readouterr().err


def test_help_shows_all_commands(capsys):
    assert command(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: fsl-serve edge")
