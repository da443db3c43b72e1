"""`fsl-search`: Optuna draws, ordinary runs answer, and nothing that was done is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

import optuna
import pytest
from fsl.simulations import fsl_simulate as run
from fsl.simulations.fsl_search import command
from fsl.simulations.sweeps import search_trials as trials
from fsl.simulations.sweeps.search_space import read_space
from fsl.simulations.sweeps.search_trial import TrialProcess, TrialResult, TrialTask, score
from fsl.simulations.sweeps.study import alone_in
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from fsl.errors import ConfigError, FslError
from tests.helpers.places import ROOT
from tests.helpers.sweeps import MODEL, press_ctrl_c

pytestmark = pytest.mark.slow

SMOKE = ["experiment=smoke", "rounds=1", "devices=2", "samples_per_device=16"]
LONG = ["experiment=smoke", "rounds=3000", "devices=2", "samples_per_device=16", "figures=false"]
RATES = "optimizer.lr=tag(log,interval(1e-3,1e-1))"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-search"])


@pytest.fixture
def instant(monkeypatch):
    """Trials that take no time: each reports the values in `rounds`, and fails or is interrupted where asked."""

    class Trials:
        rounds = staticmethod(lambda number: [number / 10])
        fails: set[int] = set()  # noqa: RUF012
        interrupted_at: int | None = None
        ran: list[tuple[int, list[str]]] = []  # noqa: RUF012

    fake = Trials()
    fake.ran, fake.fails = [], set()

    def run_trial(task: TrialTask, report):
        number = int(task.folder.name.partition("-")[2])
        fake.ran.append((number, list(task.overrides)))
        if number == fake.interrupted_at:
            raise KeyboardInterrupt
        if number in fake.fails:
            return TrialResult("failed", reason="it had to")
        for round, value in enumerate(fake.rounds(number), start=1):
            if report(round, value):
                return TrialResult("pruned", reason=f"after round {round}")
        return TrialResult("complete", value)

    monkeypatch.setattr(trials, "run_trial", run_trial)
    return fake


def states(study: str = "study") -> list[TrialState]:
    loaded = optuna.load_study(study_name="fsl", storage=f"sqlite:///{study}/study.db")
    return [trial.state for trial in loaded.trials]


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("a=tag(log,interval(1e-4,1e-1))", FloatDistribution(1e-4, 1e-1, log=True)),
        ("a=interval(0,1)", FloatDistribution(0, 1)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=range(1,4)", IntDistribution(1, 3)),
        ("a=range(8,0,-2)", IntDistribution(2, 8, step=2)),
        ("a=tag(log,range(1,65))", IntDistribution(1, 64, log=True)),
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("a=choice(0,.25,.5)", CategoricalDistribution(["0", "0.25", "0.5"])),
        ("a=x,y", CategoricalDistribution(["x", "y"])),
        ("a=[0.5],[]", CategoricalDistribution(["[0.5]", "[]"])),
    ],
)
def test_hydras_sweep_syntax_becomes_optunas_distributions(override, distribution):
    space = read_space(["rounds=3", override])
    assert space.parameters == {"a": distribution}
    assert space.fixed == ["rounds=3"]


def test_a_study_runs_its_trials_and_says_what_was_best(capsys):
    assert command([*SMOKE, RATES, "batch_size=8,32", "--trials", "2", "--study", "study"]) == 0
    out = capsys.readouterr().out
    assert "2 trials: 2 complete, 0 pruned, 0 failed; results: study" in out
    accuracies = {
        number: json.loads(Path(f"study/trial-{number}/metrics.jsonl").read_text())["accuracy"] for number in (0, 1)
    }
    best = max(accuracies, key=accuracies.__getitem__)
    assert f"best: accuracy {accuracies[best]:.6g} in trial {best} (optimizer.lr=" in out
    again = next(line for line in out.splitlines() if line.startswith("run it again: fsl-simulate "))
    assert run.command([*again.removeprefix("run it again: fsl-simulate ").split(), "hydra.run.dir=again"]) == 0
    assert Path("again/model.safetensors").read_bytes() == Path(f"study/trial-{best}/model.safetensors").read_bytes()
    assert "rounds=1" in Path("study/trial-0/.hydra/overrides.yaml").read_text()


def test_a_continued_study_draws_what_it_would_have_drawn(instant, capsys):
    arguments = [*SMOKE, RATES, "local_epochs=range(1,5)", "--trials", "14"]
    assert command([*arguments, "--study", "whole"]) == 0
    whole, instant.ran = instant.ran, []
    instant.interrupted_at = 12
    assert command([*arguments, "--study", "study"]) == 130
    assert capsys.readouterr().err == "fsl-search: interrupted; go on with fsl-search --study study\n"
    assert states()[-1] is TrialState.RUNNING
    instant.interrupted_at = None
    assert command(["--study", "study"]) == 0
    assert [number for number, _ in instant.ran] == [*range(13), 12, 13]
    assert [*instant.ran[:12], *instant.ran[13:]] == whole
    assert len({tuple(overrides) for _, overrides in whole}) == 14
    assert command(["--study", "study", "--trials", "15"]) == 0
    assert len(states()) == 15


def test_an_interrupted_trial_goes_on_from_its_checkpoint_to_the_same_bits(monkeypatch):
    arguments = [*SMOKE, "rounds=2", "batch_size=16,32", "--trials", "1", "--sampler", "grid"]
    assert command([*arguments, "--study", "whole"]) == 0

    def interrupt(self, row):
        if row["round"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fsl.simulations.sweeps.search_trial._Reporter.on_round", interrupt)
        assert command([*arguments, "--study", "study"]) == 130
    first = Path("study/trial-0/metrics.jsonl").read_text()
    assert command(["--study", "study"]) == 0
    assert Path("study/trial-0/metrics.jsonl").read_text().startswith(first)
    one, other = (Path(f"{study}/trial-0/model.safetensors").read_bytes() for study in ("study", "whole"))
    assert one == other


def test_a_failed_trial_is_one_line_and_does_not_end_the_study(instant, capsys):
    instant.fails = {1}
    assert command([*SMOKE, RATES, "--trials", "3", "--study", "study"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("fsl-search: trial 1 (optimizer.lr=")
    assert captured.err.endswith(") failed: it had to\n")
    assert captured.err.count("\n") == 1
    assert "3 trials: 2 complete, 0 pruned, 1 failed" in captured.out
    assert states()[1] is TrialState.FAIL


def test_trials_are_listed_best_first_on_the_terminal_and_as_csv(instant, capsys):
    instant.rounds = lambda number: [(0.5, 0.9, 0.7, 0.8)[number]]
    instant.fails = {3}
    assert command([*SMOKE, RATES, "--trials", "4", "--study", "study"]) == 0
    with open("study/trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["accuracy"], row["state"]) for row in rows] == [
        ("1", "0.9", "complete"),
        ("2", "0.7", "complete"),
        ("0", "0.5", "complete"),
        ("3", "", "failed"),
    ]
    assert rows[0]["optimizer.lr"] == next(
        override for number, overrides in instant.ran for override in overrides if number == 1 and "lr=" in override
    ).removeprefix("optimizer.lr=")
    printed = capsys.readouterr().out
    shown = printed[printed.index("best first") :].splitlines()
    assert [line.split()[0] for line in shown if line.endswith(("complete  ", "failed  "))] == ["1", "2", "0", "3"]


def test_the_smallest_loss_is_the_first_of_the_list(instant):
    instant.rounds = lambda number: [(0.5, 0.9, 0.1)[number]]
    assert command([*SMOKE, RATES, "--trials", "3", "--metric", "loss", "--study", "study"]) == 0
    with open("study/trials.csv", newline="") as file:
        assert [row["trial"] for row in csv.DictReader(file)] == ["2", "0", "1"]


def test_a_study_that_is_interrupted_has_its_list_too(instant):
    instant.interrupted_at = 1
    assert command([*SMOKE, RATES, "--trials", "2", "--study", "study"]) == 130
    assert "interrupted" in Path("study/trials.csv").read_text()


@pytest.mark.parametrize("metric", ["energy_joules", "mae", "epsilon_model"])
def test_what_is_better_the_less_it_is_is_minimised(instant, metric):
    assert command([*SMOKE, RATES, "--trials", "1", "--metric", metric, "--study", "study"]) == 0
    assert json.loads(Path("study/study.json").read_text())["direction"] == "minimize"


def test_a_study_without_a_finished_trial_says_so(instant, capsys):
    instant.fails = {0, 1}
    assert command([*SMOKE, RATES, "--trials", "2", "--study", "study"]) == 1
    assert "no trial ran to its end" in capsys.readouterr().err


def test_a_trial_with_bad_input_and_one_with_a_mistake_of_the_users_fail_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "unsound.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = ["model=custom", "model._target_=unsound.model", "+model.how=well,raise", "devices=2,5000"]
    assert command([*SMOKE, *model, "--sampler", "grid", "--study", "study"]) == 0
    sys.modules.pop("unsound", None)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 3
    assert "(+model.how=well devices=5000) failed: devices=5000: there are only" in captured.err
    assert "failed: ZeroDivisionError: of the user's own (unsound.py, line " in captured.err
    assert "4 trials: 1 complete, 0 pruned, 3 failed" in captured.out


def test_the_median_prunes_and_says_so(instant, capsys):
    instant.rounds = lambda number: [0.9 - number / 100] * 3
    assert command([*SMOKE, RATES, "--trials", "7", "--pruner", "median", "--study", "study"]) == 0
    assert "): pruned after round 1; results: study/trial-5" in capsys.readouterr().out
    assert states()[4:] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]


def test_a_pruned_run_ends_and_keeps_its_rounds(monkeypatch, capsys):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: True)
    assert command([*SMOKE, "rounds=2", RATES, "--trials", "1", "--study", "study"]) == 1
    assert "pruned after round 1, at accuracy 0." in capsys.readouterr().out
    assert Path("study/trial-0/metrics.jsonl").read_text().count("\n") == 1


def test_a_grid_is_every_combination_once_and_no_more(instant):
    arguments = [*SMOKE, "batch_size=8,16", "local_epochs=range(1,3)", "--sampler", "grid", "--study", "study"]
    assert command(arguments) == 0
    assert [overrides[-2:] for _, overrides in instant.ran] == [
        [f"batch_size={size}", f"local_epochs={epochs}"] for size in (8, 16) for epochs in (1, 2)
    ]
    assert command(["--study", "study", "--trials", "9"]) == 0
    assert len(instant.ran) == 4


def test_losses_are_minimised(instant, capsys):
    assert command([*SMOKE, RATES, "--trials", "3", "--metric", "train_loss", "--study", "study"]) == 0
    assert "best: train_loss 0 in trial 0" in capsys.readouterr().out


ROWS = [{"round": 1, "loss": 0.5, "accuracy": 0.9}, {"round": 2, "loss": None, "accuracy": 0.7}]


@pytest.mark.parametrize(
    ("metric", "best_round", "sign", "value"),
    [("accuracy", False, 1, 0.7), ("accuracy", True, 1, 0.9), ("loss", True, -1, 0.5), ("accuracy", True, -1, 0.7)],
)
def test_a_trial_is_scored_by_its_last_round_or_its_best(metric, best_round, sign, value):
    assert score(ROWS, TrialTask(Path(), [], metric, best_round, sign)) == value


def test_a_run_that_diverged_has_no_score():
    with pytest.raises(FslError, match="loss is no finite number: the run diverged"):
        score(ROWS, TrialTask(Path(), [], "loss", False, -1))


def test_a_metric_that_no_round_has_names_those_there_are():
    with pytest.raises(ConfigError, match="--metric f1: a round has no such metric; there are: loss, accuracy"):
        score(ROWS, TrialTask(Path(), [], "f1", False, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to search"),
        (["rounds=abc", RATES], "rounds='abc': it must be a whole number"),
        (["round=3", RATES], "there is no key 'round'; did you mean 'rounds'?"),
        (["hydra.sweep.dir=x", RATES], "hydra.sweep.dir=x: a search has no launcher or folders of Hydra's"),
        (["resume=x", RATES], "resume=x: a search goes on with --study FOLDER"),
        ([RATES, "--sampler", "grid"], "optimizer.lr is drawn from an interval, which has no grid"),
        (["seed=range(3,1)"], "seed=range(3,1): the range is empty"),
        (["seed=tag(log,range(0,4))"], "seed=tag(log,range(0,4)): "),
        (["strategy=glob(*)"], "strategy=glob(*): a search knows"),
        ([RATES, "optimizer.lr=1,2"], "optimizer.lr is given twice"),
        ([RATES, "--trials", "0"], "--trials 0: it must be at least 1"),
        ([RATES, "--trials", "many"], "invalid int value: 'many'"),
        ([RATES, "--sampler", "best"], "invalid choice: 'best'"),
        ([RATES, "--metric", "mine"], "--metric mine: whether more of it is better is not known; add --direction"),
        ([RATES, "--metric", "bytes"], "--metric bytes: a search takes one column of metrics.jsonl; use up_bytes"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(arguments, message, capsys):
    assert command([*arguments, "--study", "study"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("fsl-search: ")
    assert error.count("\n") == 1
    assert not Path("study/trial-0").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "loss"], "that study has metric accuracy, not loss"),
        (["--sampler", "random"], "that study has sampler tpe, not random"),
        (["seed=1,2"], "that study has the overrides experiment=smoke"),
    ],
)
def test_what_is_given_to_a_continued_study_must_agree_with_it(instant, arguments, message, capsys):
    assert command([*SMOKE, RATES, "--trials", "1", "--study", "study"]) == 0
    assert command([*arguments, "--study", "study"]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_study_is_one_line(instant, capsys):
    assert command([*SMOKE, RATES, "--trials", "1", "--study", "study"]) == 0
    capsys.readouterr()
    for name in ("study.db", "study.json"):
        Path("study", name).write_bytes(b"no such thing" * 99)
        assert command(["--study", "study"]) == 2
        error = capsys.readouterr().err
        assert f"{name} " in error
        assert error.count("\n") == 1


def test_two_searches_do_not_share_a_study(instant, capsys):
    assert command([*SMOKE, RATES, "--trials", "1", "--study", "study"]) == 0
    with alone_in(Path("study")):
        assert command(["--study", "study"]) == 2
    assert "another fsl-search is at work there" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(monkeypatch, capsys):
    for name in (
        "fsl.simulations.sweeps.study",
        "fsl.simulations.sweeps.search_space",
        "fsl.simulations.sweeps.search_trials",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert command([RATES]) == 2
    assert "pip install 'fsl-flower[sweep]'" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it reads a process's signals from /proc")
def test_ctrl_c_does_not_reach_a_trials_process_not_even_while_it_starts():
    trial = TrialProcess(TrialTask(Path("trial-0"), SMOKE, "accuracy", False, 1))
    try:
        status = Path(f"/proc/{trial.process.pid}/status").read_text()
    finally:
        trial.end()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:"))
    assert int(blocked, 16) & (1 << (signal.SIGINT - 1))


def test_trials_at_the_same_time_lose_nothing_to_one_that_is_killed(tmp_path, monkeypatch, capsys):
    (tmp_path / "unsound.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = ["model=custom", "model._target_=unsound.model"]
    grid = ["figures=false", "+model.how=kill,well", "--sampler", "grid", "--jobs", "2"]
    assert command([*SMOKE, *model, *grid, "--study", "study"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "fsl-search: trial 0 (+model.how=kill) failed: its process was killed (exit code -9)\n"
    assert "2 trials: 1 complete, 0 pruned, 1 failed" in captured.out
    assert run.command([*SMOKE, *model, "+model.how=well", "hydra.run.dir=alone"]) == 0
    one, other = (Path(f"{folder}/model.safetensors").read_bytes() for folder in ("study/trial-1", "alone"))
    assert one == other


class AtOnce:
    """Stands for a trial's process: it has told of its first round. `ended` are those that were stopped."""

    ended: list[str] = []  # noqa: RUF012

    def __init__(self, task):
        self.name = task.folder.name
        self.connection, self.told = Pipe()
        self.told.send((1, 0.5))

    def receive(self, report):
        report(*self.connection.recv())

    def end(self):
        self.ended.append(self.name)


# In this process: test_an_interrupted_trial_goes_on_from_its_checkpoint_to_the_same_bits.
@pytest.mark.parametrize(("jobs", "stopped"), [("1", []), ("2", ["trial-0", "trial-1"])])
def test_ctrl_c_that_meets_the_data_base_is_no_error_of_it_and_stops_all_trials(jobs, stopped, monkeypatch, capsys):
    def report(trial, value, step):
        try:
            raise KeyboardInterrupt
        finally:
            raise StorageInternalError("the transaction was rolled back")

    monkeypatch.setattr(optuna.Trial, "report", report)
    monkeypatch.setattr("fsl.simulations.sweeps.trial_pool.TrialProcess", AtOnce)
    monkeypatch.setattr(AtOnce, "ended", [])
    assert command([*SMOKE, RATES, "--trials", "2", "--jobs", jobs, "--study", "study"]) == 130
    assert capsys.readouterr().err == "fsl-search: interrupted; go on with fsl-search --study study\n"
    assert AtOnce.ended == stopped


# Several are stopped in test_ctrl_c_that_meets_the_data_base_is_no_error_of_it_and_stops_all_trials, in this process.
def test_ctrl_c_ends_a_trials_process_with_one_line(tmp_path):
    program = [sys.executable, "-m", "fsl.simulations.fsl_search"]
    running = subprocess.Popen(
        [*program, *LONG, "seed=0,1", "--trials", "1", "--jobs", "2", "--study", "study"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    error = press_ctrl_c(running, lambda: any(tmp_path.glob("study/*/checkpoint/state.json")))
    assert (running.returncode, error) == (130, "fsl-search: interrupted; go on with fsl-search --study study\n")
