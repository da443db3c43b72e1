"""`fsl-separate local`: all devices of a folder as processes of this machine, checked against one program."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from fsl.simulations.endings import tell
from fsl.simulations.serving.serve_options import ServeOptions

from fsl import seeds
from fsl.errors import ConfigError, RunError
from fsl.inference.separable import LocalGroup, load_device
from fsl.inference.separable.separable_model import run_grouped
from fsl.inference.serving.thread_turns import short_turns
from fsl.run.observers import human_bytes

LOCAL_OPTIONS = ("folder", "rows", "count", "patience", "threads", "seed", "allow")


def separate_local(arguments: Sequence[str]) -> int:
    """Start the devices, ask them, and say whether they give what one program gives; returns 1 where not."""
    options = ServeOptions(arguments, LOCAL_OPTIONS)
    if not options.has("folder"):
        raise ConfigError("folder must be given, as fsl-separate search wrote it; see fsl-separate --help")
    folder, allowed = options.path("folder"), options.texts("allow")
    rows, count = options.whole("rows", 1, 1) or 1, options.whole("count", 20, 1) or 20
    torch.set_num_threads(options.whole("threads", 1, 1) or 1)
    first = load_device(folder / "device0", allowed=allowed)
    parts = [load_device(folder / f"device{k}", allowed=allowed).group for k in range(first.group.gates.devices)]
    generator = seeds.torch_generator(options.whole("seed", 0) or 0, "images for devices")
    images = torch.randn(rows, *first.group.plan.input_shape, generator=generator, dtype=first.dtype)
    alone, wanted = _timed(lambda: run_grouped(parts, images), count)
    patience = options.number("patience", 10.0) or 10.0
    with short_turns(), LocalGroup(folder, patience=patience, rows=rows, allowed=allowed) as group:
        tell(f"devices: processes {', '.join(map(str, group.pids))}")
        group.answer(images)
        together, found = _timed(lambda: group.answer(images), count)
        sent = group.counts.value_bytes // (count + 1)
    same = torch.equal(found, wanted)
    tell(f"outputs: {'the same' if same else 'NOT the same'} as one program's, to the bit")
    times = f"{1e3 * together:.1f} ms by {len(parts)} processes, {1e3 * alone:.1f} ms by one, part after part"
    tell(f"{rows} images: {times}")
    tell(f"device 0 sends {human_bytes(sent)} of values a request")
    if not same:
        raise RunError("the processes give other outputs than one program: see whether all have one torch and threads")
    return 0


def _timed(work: Callable[[], torch.Tensor], count: int) -> tuple[float, torch.Tensor]:
    """Returns the median seconds, and what it gave last."""
    seconds, found = [], None
    for _ in range(count):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    assert found is not None
    return median(seconds), found
