"""Exact sums are the same to the bit by whichever way they are added, and as one by one."""

import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fsl.segments import exact_additions, sum_kernel
from fsl.segments.block_sums import add_by_blocks
from fsl.segments.exact_additions import add_exactly
from fsl.segments.states import Layout, State
from fsl.segments.sum_kernel import SumKernel, built, kept
from fsl.segments.sums import DeviceStates, WeightedSum

HAS_COMPILER = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="this machine has no C compiler")
LENGTHS = (1, 7, 511, 512, 513, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 40_000)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def own_kernel(monkeypatch):
    """A process's kernel that nobody asked yet."""
    kernel = SumKernel()
    monkeypatch.setattr(exact_additions, "_KERNEL", kernel)
    return kernel


class Without:
    def ready(self, elements):
        return None


class With:
    def __init__(self, add):
        self.add = add

    def ready(self, elements):
        return self.add


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSL_CACHE", str(tmp_path_factory.mktemp("cache")))
        return With(built())


def rows_of(dtype, size, rows=6, seed=0):
    """Values of all magnitudes that a dtype has: tiny ones below normal, zeros of both signs, and huge ones."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, size, generator=draw, dtype=torch.float64)
    span = {torch.float16: (-7, 4), torch.float64: (-310, 290)}.get(dtype, (-44, 30))
    values *= 10.0 ** torch.randint(*span, values.shape, generator=draw).double()
    values[torch.rand(values.shape, generator=draw) < 0.05] = -0.0
    return values.to(dtype)


def knuth(rows, weights):
    """The pair as the first version of fsl had it, by torch: each row weighed, then added by TwoSum."""
    high = rows[0].double() * weights[0]
    low = torch.zeros_like(high)
    for row, weight in zip(rows[1:], weights[1:]):
        term = row.double() * weight
        total = high + term
        arrived = total - high
        low += (high - (total - arrived)) - (arrived - term)
        high = total
    return high, low


def bits(*tensors):
    return [tensor.view(torch.int64) for tensor in tensors]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(bits(*found), bits(*expected)))


def added(rows, weights, at_once):
    high = rows[0].double() * weights[0]
    low = torch.zeros_like(high)
    for first in range(1, len(rows), at_once):
        add_exactly(high, low, rows[first : first + at_once], weights[first : first + at_once])
    return high, low


WEIGHTS = [600.0, 0.1, 31.0, 1e-3, 7.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at_once", [1, 5])
def test_sums_by_blocks_have_the_bits_of_sums_one_by_one(monkeypatch, dtype, at_once):
    monkeypatch.setattr(exact_additions, "_KERNEL", Without())
    for size in LENGTHS:
        rows = rows_of(dtype, size)
        assert same(added(rows, WEIGHTS, at_once), knuth(rows, WEIGHTS))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("at_once", [1, 5])
def test_compiled_sums_have_the_bits_of_sums_one_by_one(monkeypatch, compiled, dtype, at_once):
    assert compiled.add is not None
    monkeypatch.setattr(exact_additions, "_KERNEL", compiled)
    for size in LENGTHS:
        rows = rows_of(dtype, size)
        assert same(added(rows, WEIGHTS, at_once), knuth(rows, WEIGHTS))


@needs_compiler
def test_rows_that_are_parts_of_a_wider_table_are_added(monkeypatch, compiled):
    monkeypatch.setattr(exact_additions, "_KERNEL", compiled)
    table = rows_of(torch.float32, 300)
    for rows in (table[:, 10:200], table[::2, 10:200], table.T.contiguous().T[:, :100]):
        assert same(added(rows, WEIGHTS, 5), knuth(rows, WEIGHTS))


def test_many_rows_at_once_pass_the_buffers_ends(monkeypatch):
    monkeypatch.setattr(exact_additions, "_KERNEL", Without())
    rows, weights = rows_of(torch.float32, 20_000, rows=20), [float(n + 1) for n in range(20)]
    assert same(added(rows, weights, 19), knuth(rows, weights))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6])
def test_rows_added_in_pairs_have_the_sum_that_a_pair_can_hold(rows):
    values, weights = rows_of(torch.float32, 1000, rows=rows), WEIGHTS[:rows]
    high, low = torch.zeros(2, 1000, dtype=torch.float64)
    exact_additions._add_on_accelerator(high, low, values, weights)
    expected = knuth(values, weights)
    assert torch.equal(high + low, expected[0] + expected[1])


@pytest.fixture
def layout():
    module = torch.nn.BatchNorm1d(40)
    return Layout(torch.nn.Sequential(torch.nn.Linear(30, 40), module))


def stacked(layout, devices):
    draw = torch.Generator().manual_seed(3)
    return State(
        {
            dtype: torch.randn(devices, size, generator=draw)
            if dtype.is_floating_point
            else torch.randint(9, (devices, size), generator=draw)
            for dtype, size in layout.sizes.items()
        }
    )


@pytest.mark.parametrize("weights", [[3.0, 0.5, 7.0, 11.0], [0.0, 0.5, 0.0, 11.0], [0.0] * 4, [0.0, 0.0, 2.0, 0.0]])
def test_stacked_states_are_added_as_one_by_one(layout, weights):
    states = stacked(layout, 4)
    together, alone = WeightedSum(layout), WeightedSum(layout)
    together.add_many(states, weights, range(4))
    together.add_many(states, weights, range(4, 8))
    for _ in range(2):
        for row, weight in enumerate(weights):
            alone.add(State({dtype: flat[row] for dtype, flat in states.flats.items()}), weight)
    assert together.weight == alone.weight
    for ours, theirs in ((together.high, alone.high), (together.low, alone.low)):
        assert ours.keys() == theirs.keys()
        assert all(same([flat], [theirs[dtype]]) for dtype, flat in ours.items())
    assert all(torch.equal(flat, alone.counters[dtype]) for dtype, flat in together.counters.items())


def test_states_one_by_one_take_stacked_states_under_their_devices(layout):
    states, total = stacked(layout, 3), DeviceStates(layout)
    total.add_many(states, [2.0, 0.0, 5.0], [7, 8, 9])
    assert total.weights == {7: 2.0, 9: 5.0}
    assert torch.equal(total.states[9].flats[torch.float32], states.flats[torch.float32][2])


@needs_compiler
def test_a_kernel_is_built_once_it_pays_off_and_kept_for_this_user_alone(cache, own_kernel):
    assert own_kernel.ready(1 << 20) is None
    assert not cache.exists()
    assert own_kernel.ready(1 << 26) is not None
    assert sorted(path.suffix for path in cache.iterdir()) == [".sha256", ".so"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in cache.iterdir())
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@needs_compiler
def test_a_kept_kernel_is_loaded_long_before_one_is_built(cache, own_kernel):
    assert built() is not None
    assert own_kernel.ready(1000) is None
    assert own_kernel.ready(1 << 18) is not None


@needs_compiler
@pytest.mark.parametrize("suffix", [".so", ".sha256"])
def test_a_library_that_others_may_change_is_not_loaded(cache, suffix):
    assert built() is not None
    (file,) = cache.glob(f"*{suffix}")
    file.chmod(0o622)
    assert kept() is None
    file.chmod(0o600)
    assert kept() is not None
    cache.chmod(0o777)
    assert kept() is None


@needs_compiler
@pytest.mark.parametrize("suffix", [".so", ".sha256"])
def test_a_library_that_was_cut_short_is_not_loaded_and_built_anew(cache, suffix):
    assert built() is not None
    (file,) = cache.glob(f"*{suffix}")
    os.truncate(file, file.stat().st_size // 2)
    assert kept() is None
    assert built() is not None
    assert kept() is not None


def test_without_a_compiler_sums_are_added_by_blocks(cache, own_kernel, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.setattr(sum_kernel, "_BUILT_AFTER", 0)
    rows = rows_of(torch.float32, 100)
    assert same(added(rows, WEIGHTS, 5), knuth(rows, WEIGHTS))
    assert own_kernel.ready(1 << 27) is None


@pytest.mark.parametrize("script", ["exit 1", "exit 0", 'for a; do :; done; echo no > "${@: -2:1}"'])
def test_a_compiler_that_makes_nothing_usable_is_done_without(cache, tmp_path, monkeypatch, script):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/bash\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert built() is None
    assert kept() is None


@needs_compiler
def test_a_cache_that_cannot_be_written_costs_later_runs_their_kernel_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "file"))
    assert built() is not None
    assert kept() is None


@needs_compiler
def test_a_kernel_that_errs_is_not_used(cache, monkeypatch):
    monkeypatch.setattr(sum_kernel, "_SOURCE", sum_kernel._SOURCE.replace("(term - part);", "(term - part) * 0.5;"))
    assert built() is None
    assert not list(cache.iterdir())


@needs_compiler
def test_who_builds_at_once_does_not_disturb_each_other(cache):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: (built(), kept()), range(3)))
    assert all(adding is not None for pair in found for adding in pair)
    assert len(list(cache.iterdir())) == 2
    assert kept() is not None


@needs_compiler
def test_sums_that_overflow_have_no_warning_either_way(compiled):
    rows, weights = np.full((2, 10), 1e308), np.array([10.0, 10.0])
    high, low = np.full((2, 10), 1e308)
    add_by_blocks(high, low, rows, weights)
    assert np.isinf(high).all()
    one, other = torch.full((2, 10), 1e308, dtype=torch.float64)
    compiled.add(one, other, torch.from_numpy(rows), weights)
    assert one.isinf().all()
