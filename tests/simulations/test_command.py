"""`fsl-simulate` as a user types it."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fsl.simulations.fsl_export import command as export
from fsl.simulations.fsl_simulate import command
from fsl.strategies import SplitFedV1
from PIL import Image
from safetensors.torch import load_file

from fsl import files
from fsl.quoting import override_value
from tests.helpers.places import ROOT
from tests.helpers.runs import assert_same_bits

pytestmark = pytest.mark.slow

SMOKE = ["experiment=smoke", "samples_per_device=16"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def run_into(folder: str, *overrides: str) -> Path:
    assert command([*SMOKE, *overrides, f"hydra.run.dir={folder}"]) == 0
    return Path(folder)


def test_a_run_writes_what_it_should(pictures, capsys):
    folder = run_into("run")
    written = {path.name for path in folder.iterdir()}
    assert {"metrics.jsonl", "summary.json", "model.safetensors", "figures", "tensorboard", "checkpoint"} <= written
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert pictures == {"accuracy.png", "loss.png", "bytes.png", "time.png", "classes.png"}
    assert all(Image.open(folder / "figures" / name).size[0] > 600 for name in pictures)
    captured = capsys.readouterr()
    assert "accuracy" in captured.out
    assert "results: run" in captured.out
    assert captured.err == ""  # no progress bar where nobody watches, and nothing went wrong
    assert "experiment=smoke" in json.loads((folder / "summary.json").read_text())["command"]


def test_splitfed_v1_and_fedavg_write_equal_models():
    options = ["partition=dirichlet", "model=resnet8", "rounds=1", "evaluate_every=0"]
    one = run_into("split", "strategy=splitfed_v1", *options)
    other = run_into("whole", "strategy=fedavg", *options)
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_folder_is_named_by_the_time_and_never_used_twice():
    for _ in range(2):
        assert command([*SMOKE, "rounds=1"]) == 0
    assert len(list(Path("outputs").glob("*/*/metrics.jsonl"))) == 2


def test_a_sweep_runs_all_its_jobs_though_one_fails(capsys):
    assert command(["-m", *SMOKE, "rounds=1", "devices=2,5000,3"]) == 2
    assert len(list(Path("multirun").glob("*/*/*/summary.json"))) == 2
    assert "devices=5000: there are only" in capsys.readouterr().err


BAD = [
    (
        ["strategy=foo"],
        "strategy=foo: there is no such strategy; available are: asynchronous, cyclesl, decoupled, fedavg",
    ),
    (["model=foo"], "model=foo: there is no such model; available are: alexnet"),
    (["data=foo"], "data=foo: there is no such data; available are: breast_cancer, cifar10, custom, digits"),
    (["experiment=foo"], "experiment=foo: there is no such experiment"),
    (["model.cut=foo"], "cut='foo' cannot be made: the model has no module of that name; possible cuts: stage1"),
    (["data=images", "data.path=nowhere"], "nowhere"),
    (["round=3"], "there is no key 'round'; did you mean 'rounds'?"),
    (["optimizer.speed=3"], "there is no key 'optimizer.speed'"),
    (["+optimizer.speed=3"], "there is no option of optimizer 'speed'"),
    (["strategy=sglr", "strategy.phi=2"], "phi=2.0: it is a share of the devices, from 0 to 1"),
    (["strategy=sglr", "strategy.phase=abc"], "strategy.phase='abc': it must be a list of numbers"),
    (["link=lte", "link.trace=abc"], "link.trace='abc': it must be a list of lists of numbers"),
    (["aggregator=foo"], "aggregator=foo: there is no such aggregator; available are: fedadam"),
    (["aggregator=fedadam", "aggregator.eta=abc"], "aggregator.eta='abc': it must be a number"),
    (["aggregator=krum", "aggregator.num_malicious_nodes=9"], "it needs at least 21 devices a round, and has 4"),
    (["strategy=sglr", "aggregator=median"], "SGLR averages nothing over devices"),
    (["rounds=abc"], "rounds='abc': it must be a whole number"),
    (["rounds=1.5"], "rounds=1.5: it must be a whole number"),
    (["rounds=0"], "rounds=0: it must be at least 1"),
    (["devices=0"], "devices=0: it must be at least 1"),
    (["devices=5000"], "devices=5000: there are only "),
    (["devices_per_round=5"], "devices_per_round=5: it must lie between 1 and devices=4"),
    (["partition=dirichlet", "partition.alpha=0"], "partition.alpha=0"),
    (["partition=dirichlet", "partition.alpha=-1"], "partition.alpha=-1"),
    (["partition=dirichlet", "partition.alpha=abc"], "partition.alpha='abc': it must be a number"),
    (["partition=resample"], "samples_per_device"),
    (["optimizer.lr=-0.1"], "optimizer.lr=-0.1: a learning rate is a finite number >= 0"),
    (["optimizer.lr=nan"], "optimizer.lr=nan: a learning rate is a finite number >= 0"),
    (["optimizer.momentum=-1"], "Invalid momentum value: -1"),
    (["optimizer._target_=os.system"], "os.system"),
    (["codec.up=os.system"], "codec.up=os.system"),
    (["model=custom"], "model names no class; set model._target_"),
    (["model._target_=no.such.Model"], "there is no 'no.such.Model' to import"),
    (["strategy=splitfed_v2", "strategy.order=x"], "strategy.order='x': it must be one of step, round"),
    (["strategy=splitfed_v3", "data.validation=0.1"], "set data.validation=0"),
    (["backend.threads=0"], "backend.threads=0: it must be at least 1"),
    (["backend.accelerator=tpu"], "backend.accelerator='tpu': allowed are cpu, cuda"),
    (["init_from=nowhere.safetensors"], "nowhere.safetensors"),
    (["resume=nowhere"], "resume=nowhere: there is no such folder"),
    (["seed=null"], "seed=None: it must be a whole number"),
    (["rounds"], "rounds"),
    (
        ["edge=2"],
        "edge=2: there is no such edge; available are: edge_gpu, laptop, mixed; how many there are is edges=2",
    ),
    (["device=mixed", "device.assign=[pi5]"], "there is no device profile 'pi5'. There are: edge_gpu, jetson_nano"),
    (["link.up_mbit=0"], "up_mbit=0.0 of wifi_75: it must be above 0"),
    (["link.speed=1"], "there is no key 'link.speed'"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_line_and_exit_code_2(overrides, message, capsys):
    assert command(["experiment=smoke", *overrides]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("fsl-simulate: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(Path().rglob("metrics.jsonl"))


def test_a_parquet_without_labels_is_refused(capsys, tmp_path):
    import pyarrow
    from pyarrow import parquet

    Path("data").mkdir()
    for name in ("train", "test"):
        parquet.write_table(pyarrow.table({"img": [b"1", b"2"]}), f"data/{name}.parquet")
    assert command(["data=cifar10", "data.path=data"]) == 2
    assert "label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.cosine=true"], "that run has optimizer.schedule="),
        (["optimizer.lr=0.1"], "that run has optimizer.lr="),
    ],
)
def test_a_run_of_another_configuration_cannot_be_resumed(overrides, message, capsys):
    folder = run_into("run")
    before = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert command([*SMOKE, "resume=run", *overrides]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_a_corrupt_checkpoint_is_one_line(capsys):
    folder = run_into("run")
    for path in (folder / "checkpoint").glob("model.*.safetensors"):  # the newest, and the one before it
        path.write_bytes(path.read_bytes()[:99])
    capsys.readouterr()
    assert command([*SMOKE, "resume=run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_ends_in_one_line_and_a_folder_that_goes_on(capsys, monkeypatch):
    whole = run_into("whole", "rounds=3")
    written = files.os.replace
    saved = []

    def full(source, target):
        if str(target).endswith(".safetensors"):
            saved.append(target)
            if len(saved) == 2:
                raise OSError(28, "No space left on device", str(target))
        return written(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    capsys.readouterr()
    assert command([*SMOKE, "rounds=3", "hydra.run.dir=full"]) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err
    assert captured.err.count("\n") == 1
    assert "resume=full" in captured.err
    assert not list(Path("full").rglob("*.tmp*"))
    monkeypatch.setattr(files.os, "replace", written)
    assert command([*SMOKE, "rounds=3", "resume=full"]) == 0
    assert Path("full/model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_reader_that_is_gone_loses_no_run(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    assert command([*SMOKE, "rounds=1", "hydra.run.dir=run"]) == 0
    assert Path("run/summary.json").exists()


def test_a_run_without_a_terminal_prints_its_rounds_and_keeps_them_in_run_log(capsys):
    folder = run_into("run", "rounds=2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines[1:3]] == ["round 1/2", "round 2/2"]
    assert [line.split(" - ")[1] for line in (folder / "run.log").read_text().splitlines()] == lines[:3]


def test_what_is_warned_of_before_the_first_round_is_in_run_log(capsys):
    folder = run_into("run", "strategy=fedavg", "edges=2", "rounds=1")
    (warned,) = [line for line in capsys.readouterr().err.splitlines() if "edges=2" in line]
    assert warned.split(" - ")[-1] in (folder / "run.log").read_text()
    assert [path.name for path in folder.glob("*.log")] == ["run.log"]


def in_round(round: int, action):
    """A strategy's `select` that does something in this round."""
    before = SplitFedV1.select

    def select(strategy, now):
        if now == round:
            action()
        return before(strategy, now)

    return select


def test_a_second_run_into_a_folder_changes_nothing_in_it(capsys):
    folder = run_into("run", "rounds=1")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert command([*SMOKE, "rounds=2", "hydra.run.dir=run"]) == 2
    assert "run holds a run already; go on with it (resume=run), or choose another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


FOLDERS = ["a=1,b=2", "ü it's [x] $y {z}"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_printed_to_go_on_with_a_run_can_be_typed(folder, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SplitFedV1, "select", in_round(2, interrupt))
        assert command([*SMOKE, "rounds=2", f"hydra.run.dir={override_value(folder)}"]) == 130
    printed = capsys.readouterr().err
    assert printed.startswith("fsl-simulate: interrupted; go on with ")
    words = shlex.split(printed.partition("go on with ")[2].removesuffix(", and the same options\n"))
    assert command([*SMOKE, "rounds=2", *words]) == 0
    assert len(Path(folder, "metrics.jsonl").read_text().splitlines()) == 2


def test_a_folder_typed_without_hydras_quotes_is_gone_on_with():
    run_into("'a=1,b 2'", "rounds=1")
    assert command([*SMOKE, "rounds=2", "resume=a=1,b 2"]) == 0
    assert len(Path("a=1,b 2/metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_was_interrupted_before_its_first_round_is_not_told_to_go_on(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(SplitFedV1, "select", in_round(1, interrupt))
    assert command([*SMOKE, "hydra.run.dir=run"]) == 130
    assert capsys.readouterr().err == "fsl-simulate: interrupted; no round was complete\n"


def test_sigterm_ends_with_143_and_the_handler_from_before_is_put_back(monkeypatch, capsys):
    monkeypatch.setattr(SplitFedV1, "select", in_round(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)
    assert command([*SMOKE, "hydra.run.dir=run"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "fsl-simulate: terminated; go on with resume=run, and the same options\n"


def test_a_folder_that_cannot_be_is_one_line_without_advice_to_go_on(capsys):
    Path("file").touch()
    for arguments in ([*SMOKE, "hydra.run.dir=file/run"], ["-m", *SMOKE, "hydra.sweep.dir=file/sweep"]):
        assert command(arguments) == 2
        error = capsys.readouterr().err
        assert "folder cannot be made ([Errno 20] Not a directory: 'file/" in error
        assert "go on" not in error


def test_a_run_to_go_on_with_that_is_not_there_is_not_made(capsys):
    assert command([*SMOKE, "resume=nowhere"]) == 2
    assert "resume=nowhere: there is no such folder" in capsys.readouterr().err
    assert not Path("nowhere").exists()


STRATEGY = """
from fsl.messages.round_plan import Spec
from fsl.strategies import SplitFedV1

class Two(SplitFedV1):
    def trainer(self, round):
        return Spec("their_trainers.b.Trainer" if round > 1 else "my_trainers.b.Trainer")
"""


def test_a_strategy_may_name_trainers_of_other_packages(tmp_path, monkeypatch):
    for package in ("my_trainers", "their_trainers"):
        Path(package).mkdir()
        Path(package, "b.py").write_text("from fsl.trainers import Replicated as Base\nclass Trainer(Base): pass\n")
    Path("my_strategies").mkdir()
    Path("my_strategies/a.py").write_text(STRATEGY)
    monkeypatch.syspath_prepend(str(tmp_path))
    run_into("run", "strategy._target_=my_strategies.a.Two")


def test_packages_are_allowed_by_name(capsys):
    assert command([*SMOKE, "allowed=nobodys_trainers"]) == 2
    assert "allowed='nobodys_trainers': it must be a list of texts" in capsys.readouterr().err
    assert command([*SMOKE, "allowed=[json,nobodys_trainers]"]) == 2
    assert "there is no package 'nobodys_trainers' to import" in capsys.readouterr().err
    run_into("run", "rounds=1", "allowed=[json]")


def test_ctrl_c_is_one_line_exit_code_130_and_a_folder_that_goes_on(tmp_path):
    options = [*SMOKE, "devices=2", "figures=false"]
    program = [sys.executable, "-m", "fsl.simulations.starting"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [*program, *options, "rounds=3000", "hydra.run.dir=run"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        # Started from a script in the background, this process ignores SIGINT, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    try:
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert running.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert error.strip().splitlines() == ["fsl-simulate: interrupted; go on with resume=run, and the same options"]
    done = metrics.read_text().count("\n")
    assert command([*options, f"rounds={done + 1}", "resume=run"]) == 0
    assert command([*options, f"rounds={done + 1}", "hydra.run.dir=whole"]) == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert_same_bits(one, other)
    rows = [json.loads(line)["round"] for line in metrics.read_text().splitlines()]
    assert rows == list(range(1, done + 2))


@pytest.mark.shows  # what is equal on small images is so on these: tests/equivalences/test_equivalences.py
def test_cifar10_on_ray_equals_inline(cifar10_folder, no_ray):
    options = [
        "data=cifar10",
        f"data.path={cifar10_folder}",
        "data.limit=2000",
        "model=vgg5",
        "strategy=splitfed_v1",
        "partition=dirichlet",
        "rounds=1",
    ]
    assert command([*options, "hydra.run.dir=inline"]) == 0
    assert command([*options, "backend=ray", "nodes=2", "hydra.run.dir=ray"]) == 0
    assert Path("inline/model.safetensors").read_bytes() == Path("ray/model.safetensors").read_bytes()


@pytest.mark.slow
def test_lora_on_the_command_line(capsys):
    """Adapters alone are trained; a sum of what is frozen and trained is the whole model."""
    pytest.importorskip("peft")
    whole = run_into("whole", "rounds=1")
    lora = run_into("lora", "rounds=1", "lora=lora", "lora.r=2", "lora.targets=[stage1.1]", "lora.train=[head]")
    sent = [json.loads((folder / "metrics.jsonl").read_text())["model_bytes"] for folder in (whole, lora)]
    assert sent[1] < sent[0] / 10
    assert {path.name for path in (lora / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = load_file(lora / "checkpoint" / "model.1.safetensors").keys()
    assert len(again) == 2 + 2
    assert export(["lora", "formats=pt2"]) == 0  # checked against the whole model
    resumed = [f"resume={lora}", "rounds=2", "lora=lora", "lora.r=2", "lora.targets=[stage1.1]", "lora.train=[head]"]
    assert command([*SMOKE, *resumed]) == 0
    assert command([*SMOKE, "lora=lora", "lora.targets=[conv9]", "hydra.run.dir=no"]) == 2
    assert "lora.targets: no module's name ends with 'conv9'; those that may: " in capsys.readouterr().err
    assert command([*SMOKE, "lora.r=4", "hydra.run.dir=no"]) == 2
    assert not Path("no").exists()
