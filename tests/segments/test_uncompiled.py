"""A program that compiles nothing does without torch's compiler, and has it as soon as somebody compiles."""

import subprocess
import sys

import pytest

from tests.helpers.places import ROOT

PROGRAM = """
import os, sys
from fsl.segments.uncompiled import leave_out_compiler

leave_out_compiler()
import torch  # which looks through all finders of modules

weight = torch.nn.Parameter(torch.ones(3))

def step():
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind([weight], lr=0.5)
        weight.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())

step()
assert "torch._dynamo.eval_frame" not in sys.modules
assert weight.detach().abs().max() < 1e-6  # one step of each by 0.5

def compile():
    @torch.compiler.disable
    def left_alone(value):
        return value + (1 if torch.compiler.is_compiling() else 2)

    assert torch.compile(lambda value: left_alone(value) * 2, backend="eager")(torch.ones(1)).item() == 6
    assert "torch._dynamo.eval_frame" in sys.modules
    step()
    added = torch.optim.Optimizer.add_param_group.__wrapped__
    assert vars(added)["__dynamo_disable"] is not added  # exempt from compilation again

print("stepped", flush=True)
if (child := os.fork()) == 0:
    from torch._dynamo.exc import UserError  # by this name first, as parts of torch do
    assert UserError.__module__ == "torch._dynamo.exc"
    assert sys.modules["torch._dynamo.exc"].__spec__.origin.endswith("exc.py")
    compile()
    print("compiled after a module of it", flush=True)
    os._exit(0)
os.waitpid(child, 0)
compile()
print("compiled", flush=True)
"""


@pytest.fixture(scope="module")
def told():
    """What a program says that compiles once it has stepped, and a fork of it that imports the compiler first."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.stdout.splitlines(), done.stderr


def test_optimizers_step_without_the_compiler_which_comes_when_it_is_used(told):
    lines, error = told
    assert "stepped" in lines, error
    assert "compiled" in lines, error


def test_the_compiler_comes_whole_where_one_of_its_modules_is_imported_first(told):
    lines, error = told
    assert "compiled after a module of it" in lines, error
