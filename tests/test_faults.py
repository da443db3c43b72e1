"""A bug in code of the user's: one line with its file and line, and its traceback in the run's folder."""

import errno
import linecache
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import FedAvgM
from fsl.simulations.endings import TerminatedError, ray_ends_like_ctrl_c
from fsl.simulations.fsl_simulate import command
from fsl.strategies import FedAvg, SplitFedV1, SplitFedV3
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import fsl
from fsl.codecs import Identity
from fsl.data import IID
from fsl.errors import CodeError, DeviceError
from fsl.faults import TRACEBACK, Failure, described, is_temporary, place_of, traced
from fsl.importing.spec import Spec
from fsl.trainers import Replicated

pytestmark = pytest.mark.slow


def simulate(strategy=None, model=None, **options):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 4, generator=generator)
    data = TensorDataset(inputs, inputs[:, :3].argmax(1))
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    settings = {"devices": 2, "rounds": 2, "cut": "0", "batch_size": 8, **options}
    return fsl.simulate(
        model, settings.pop("data", data), test_data=data, strategy=strategy or SplitFedV1(), **settings
    )


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError("no text for you")


def fails(name="bug"):
    raise LookupError(name)


def recurses():
    return recurses()


def leaves():
    sys.exit(3)


def raised_by(code) -> BaseException:
    try:
        code()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


def throws(error):
    def throw():
        raise error

    return throw


HERE = r"\(tests/test_faults.py, line \d+, in \w+\)"
TEXTS = [
    (throws(ValueError()), "ValueError"),
    (throws(KeyError("front")), "KeyError: 'front'"),
    (throws(ValueError("two\n  lines")), "ValueError: two lines"),
    (throws(UnprintableError()), "UnprintableError: its text cannot be made"),
    (
        throws(ExceptionGroup("many", [KeyError("a"), ValueError("b")])),
        r"ExceptionGroup: many \(2 sub-exceptions\): KeyE",
    ),
    (recurses, "RecursionError: maximum recursion depth exceeded"),
    (leaves, "SystemExit: 3"),
]


@pytest.mark.parametrize(("code", "text"), TEXTS, ids=[text[:15] for _, text in TEXTS])
def test_any_exception_is_one_line_with_its_place(code, text, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    line = described(raised_by(code))
    assert re.match(text, line)
    assert re.search(f"{HERE}$", line)
    assert "\n" not in line


def test_the_place_is_the_users_innermost_line_not_that_of_a_library_it_calls():
    assert re.search(
        r"test_faults.py, line \d+, in <lambda>$", place_of(raised_by(lambda: torch.zeros(2) @ torch.zeros(3)))
    )
    assert re.search(r"test_faults.py, line \d+, in <lambda>$", place_of(raised_by(lambda: re.compile("("))))


def test_where_no_line_is_the_users_the_place_is_fsls_own(monkeypatch):
    monkeypatch.setattr("fsl.faults._is_users", lambda frame: False)
    assert re.search(r"fsl/round/batches.py, line \d+, in _draws$", place_of(raised_by(lambda: _bad_batches())))


def _bad_batches():
    from fsl.round.batches import plan_batches

    plan_batches(torch.arange(3), None, 0, False)


def test_a_file_that_cannot_be_parsed_is_named_itself(tmp_path, monkeypatch):
    (tmp_path / "unparsed.py").write_text("x = (\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert place_of(raised_by(lambda: __import__("unparsed"))) == "unparsed.py, line 1"


class Broken(nn.Module):
    def forward(self, values):
        return torch.stak(values)


class Bug:
    """A hook that fails."""

    def __get__(self, instance, kind):
        return self.fail

    def fail(self, *args, **kwargs):
        fails()


def trainer_with(hook: str) -> SplitFedV1:
    kind = type(f"Bad_{hook}", (Replicated,), {hook: Bug()})

    class Chosen(SplitFedV1):
        def trainer(self, round):
            return Spec(self.path(kind))

    return Chosen()


TRAINERS = ["begin", "open", "step", "flush", "close", "result"]


@pytest.mark.parametrize("hook", TRAINERS)
def test_a_bug_in_an_edge_trainer_names_run_round_file_and_line(hook, tmp_path):
    with pytest.raises(
        DeviceError, match=r"run mine, round 1.*: LookupError: bug \(.*test_faults.py, line \d+, in fails"
    ):
        simulate(trainer_with(hook), out=tmp_path / "mine")
    assert "in fails" in (tmp_path / "mine" / TRACEBACK).read_text()


class Leaves(Replicated):
    def step(self, messages):
        sys.exit(0)


class LeavingV1(SplitFedV1):
    def trainer(self, round):
        return Spec(self.path(Leaves))


def test_an_exit_in_a_trainer_is_an_error_with_its_place(tmp_path):
    with pytest.raises(DeviceError, match=r"SystemExit: 0 \(.*in step\); to end a run from within, raise fsl.StopRun"):
        simulate(LeavingV1(), out=tmp_path / "mine")


def test_an_exit_at_the_cloud_is_an_error_too():
    class Exits(SplitFedV1):
        def select(self, round):
            sys.exit(0)

    with pytest.raises(CodeError, match=r"SystemExit: 0 \(.*in select\)"):
        simulate(Exits())


class Items(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return fails()


class BadCodec(Identity):
    encode = Bug()


class BadOptimizer(torch.optim.SGD):
    step = Bug()


class BadPartition(IID):
    divide = Bug()


class BadAggregator(FedAvgM):
    aggregate_train = Bug()


class BadObserver(fsl.Observer):
    on_round = Bug()


def hooked(hook: str) -> SplitFedV1:
    return type(f"Bad_{hook}", (SplitFedV1,), {hook: Bug()})()


PLACES = {
    "forward": lambda: {"model": nn.Sequential(nn.Linear(4, 8), Broken(), nn.Linear(8, 3))},
    "unsplit forward": lambda: {"model": nn.Sequential(nn.Linear(4, 8), Broken()), "strategy": FedAvg()},
    "loss": lambda: {"objective": lambda outputs, targets: fails()},
    "codec": lambda: {"up": "tests.test_faults.BadCodec"},
    "optimizer": lambda: {"optimizer": fsl.Optimizer("tests.test_faults.BadOptimizer", 0.1)},
    "partitioner": lambda: {"partition": BadPartition()},
    "aggregator": lambda: {"aggregator": BadAggregator()},
    "observer": lambda: {"observers": [BadObserver()]},
    **{
        hook: lambda hook=hook: {"strategy": hooked(hook)}
        for hook in ("select", "combine", "metrics", "trainer", "state")
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_a_bug_anywhere_leaves_its_traceback_in_the_runs_folder(place, tmp_path):
    error = raised_by(lambda: simulate(**PLACES[place](), out=tmp_path / "mine"))
    text = (tmp_path / "mine" / TRACEBACK).read_text()
    assert "test_faults.py" in text
    assert "test_faults.py, line" in described(error)


def test_a_bug_before_the_first_round_leaves_its_traceback_too(tmp_path):
    with pytest.raises(fsl.errors.DataError, match=r"item 0 of Items cannot be read \(LookupError: bug"):
        simulate(data=Items(), out=tmp_path / "mine")
    assert "in __getitem__" in (tmp_path / "mine" / TRACEBACK).read_text()


def test_private_fronts_whose_evaluation_fails_say_where(tmp_path):
    class OnlyTrains(nn.Linear):
        def forward(self, values):
            few = torch.is_grad_enabled() or len(values) <= 8  # as many rows are tried before the run
            return super().forward(values) if few else fails("evaluation")

    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), OnlyTrains(8, 3))
    with pytest.raises(DeviceError, match=r"run mine, round 1: LookupError: evaluation \(.*in fails"):
        simulate(SplitFedV3(), model, out=tmp_path / "mine")


def test_a_traceback_goes_when_the_run_goes_on(tmp_path):
    with pytest.raises(LookupError):
        simulate(observers=[BadObserver()], out=tmp_path / "mine")
    assert (tmp_path / "mine" / TRACEBACK).exists()
    simulate(out=tmp_path / "mine", resume=True)
    assert not (tmp_path / "mine" / TRACEBACK).exists()


def test_a_bad_value_leaves_no_traceback(tmp_path):
    with pytest.raises(fsl.errors.ConfigError):
        simulate(devices=0, out=tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_failure_in_another_process_is_the_same_error_here(tmp_path):
    there = raised_by(lambda: simulate(trainer_with("step")))
    here = Failure.of(there).error()
    assert type(here) is DeviceError
    assert str(here) == str(there)
    assert "in fails" in here.__notes__[0]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (MemoryError(), True),
        (ConnectionResetError(), True),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (ValueError("wrong"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_may_pass_is_worth_another_try(error, again):
    assert is_temporary(error) is again


MODEL = """
import torch
from torch import nn

def net(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Bad())

class Bad(nn.Module):
    def forward(self, values):
        return torch.stak(values)
"""


@pytest.fixture
def bad_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fsl-simulate"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    (tmp_path / "nets.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["experiment=smoke", "rounds=1", "devices=2", "model=custom", "model._target_=nets.net", "model.cut='0'"]
    sys.modules.pop("nets", None)


def test_the_command_names_file_line_and_traceback_and_does_not_advise_to_go_on(bad_model, capsys):
    assert command([*bad_model, "hydra.run.dir=run"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "AttributeError: module 'torch' has no attribute 'stak' (nets.py, line 10, in forward)" in error
    assert error.endswith(f"; traceback: {os.path.join('run', TRACEBACK)}")
    assert "resume=" not in error
    assert "in forward" in Path("run", TRACEBACK).read_text()
    assert "nets.py, line 10" in Path("run/run.log").read_text()


def raised_in(file: str, code: str, module: str = "theirs") -> BaseException:
    """What this code raises when its source is said to lie in this file."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011  SystemExit among others
        exec(compile(code, file, "exec"), {"__name__": module})
    return caught.value


@pytest.mark.parametrize("file", ["python/ray/_raylet.pyx", "nowhere/lib.py", "python/ray/includes/common.pxi"])
def test_sources_that_are_not_here_are_not_the_users(file):
    error = raised_in(file, "raise OSError(5, 'no')")
    assert file not in (place_of(error) or "")


def test_a_cell_of_a_notebook_is_the_users_though_it_is_no_file():
    code = "raise ValueError('no')"
    linecache.cache["/tmp/ipykernel_1/2.py"] = (len(code), None, [code], "/tmp/ipykernel_1/2.py")
    assert place_of(raised_in("/tmp/ipykernel_1/2.py", code)) == "/tmp/ipykernel_1/2.py, line 1, in <module>"
    assert place_of(raised_in("<string>", code, "__main__")) == "<string>, line 1, in <module>"


RAYS = str(Path(find_spec("ray").origin).parent / "_private/worker.py")


def test_what_rays_handler_of_sigterm_raises_is_an_ending(tmp_path):
    with pytest.raises(TerminatedError), ray_ends_like_ctrl_c(), traced(tmp_path):
        raise raised_in(RAYS, "import sys; sys.exit(15)")
    assert not (tmp_path / "traceback.txt").exists()
