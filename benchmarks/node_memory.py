"""Memory and CPU of a federation's processes: what a resident process holds, what grows, what idles.

    python -m benchmarks.node_memory                 # a few rounds of an MLP 784-128-10, then an idle minute
    python -m benchmarks.node_memory --rounds 1000   # as many rounds of one step, sampled each 50

A local federation of one edge and `--devices` devices, SplitFed V1. USS is what a process holds for itself alone. A
process that only imports torch is measured beside the nodes, since what several processes map is nobody's own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from fsl.deployment.local import LocalFederation

ROOT = Path(__file__).resolve().parent.parent
MODEL = [
    *("strategy=splitfed_v1", "edges=1", "model=mlp", "allowed=[benchmarks]"),
    *("data=custom", "data._target_=benchmarks.large_digits.large_digits"),
    *("deployment.query=600", "deployment.wait=600"),  # the machine may be busy
]
TINY = ["samples_per_device=16", "evaluate_every=0"]  # one step a round
TORCH = "import torch, psutil; print(psutil.Process().memory_full_info().uss, flush=True); input()"
KINDS = {  # by a word of the command line
    "resident_process": "resident",
    "flwr-serverapp": "cloud",
    "flower-superlink": "superlink",
    "node.supernode": "supernode",
    "superexec": "superexec",
    "flwr-clientapp": "message",
}


@dataclass(frozen=True)
class Sample:
    """One process's memory (bytes) and CPU time (seconds)."""

    uss: int
    rss: int
    cpu: float
    threads: int


Samples = dict[tuple[str, str, int], Sample]  # by node, kind and pid


def samples(federation: LocalFederation) -> Samples:
    """Measure all processes of a federation."""
    found: Samples = {}
    for name in federation.record.processes:
        for member in federation.pids(name):
            try:
                memory, cpu = member.process.memory_full_info(), member.process.cpu_times()
                threads = member.process.num_threads()
            except psutil.NoSuchProcess:
                continue
            kind = next((kind for word, kind in KINDS.items() if word in member.command), member.command[:30])
            found[name, kind, member.pid] = Sample(memory.uss, memory.rss, cpu.user + cpu.system, threads)
    return found


@contextmanager
def torch_alone() -> Iterator[float]:
    """A process that only imports torch; gives its USS in MB."""
    with subprocess.Popen(
        [sys.executable, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()) / 1e6
        process.communicate("\n")


class Watched:
    """A run of so many rounds, whose processes are measured after each `every` of them."""

    def __init__(self, federation: LocalFederation, out: Path, rounds: int, every: int):
        self.federation = federation
        self.out = out
        self.rounds = rounds
        self.every = every
        self.taken: dict[int, Samples] = {}
        self.first = 0.0  # seconds until the first round's row was there

    def run(self, overrides: list[str]) -> None:
        """Run it, and print its times; ends this program where the run fails."""
        began = time.monotonic()
        devices = self.federation.record.devices

        def look() -> None:
            done = self._done()
            if done and not self.first:
                self.first = time.monotonic() - began
            # After its last round the cloud draws figures.
            if self.rounds > done >= max(self.taken, default=0) + (self.every if self.taken else 1):
                self.taken[done] = samples(self.federation)

        end = self.federation.run([*MODEL, *overrides, f"rounds={self.rounds}", f"devices={devices}"], self.out, look)
        if not end.completed:
            sys.exit(f"the run ended as {end.status}: {end.details}")
        seconds = [json.loads(line)["seconds"] for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        print(f"{' '.join(overrides)} rounds={self.rounds} devices={devices}: {time.monotonic() - began:.1f} s in all")
        later = f", median of the later ones {1000 * median(seconds[1:]):.0f} ms" if len(seconds) > 1 else ""
        print(f"  first round done after {self.first:.1f} s; it took {seconds[0]:.1f} s{later}")

    def _done(self) -> int:
        metrics = self.out / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def show(found: Samples) -> None:
    """Print what each process holds."""
    for (name, kind, _), sample in sorted(found.items()):
        mega = f"USS {sample.uss / 1e6:6.1f} MB  RSS {sample.rss / 1e6:6.1f} MB"
        print(f"  {name:10} {kind:10} {mega}  {sample.threads:3} threads")


def show_growth(taken: dict[int, Samples], after: int) -> None:
    """Print how each process's USS grew since `after` rounds, and its CPU time a round."""
    base, last = min((done for done in taken if done >= after), default=max(taken)), max(taken)
    print(f"  CPU a round, growth of USS since round {base}, USS after rounds {', '.join(map(str, taken))}; ms and MB")
    for key in sorted(taken[base].keys() & taken[last].keys()):
        series = [found[key].uss / 1e6 for found in taken.values() if key in found]
        growth = series[-1] - taken[base][key].uss / 1e6
        cpu = 1000 * (taken[last][key].cpu - taken[base][key].cpu) / max(1, last - base)
        print(f"  {key[0]:10} {key[1]:10} {cpu:6.2f} {growth:+6.2f}  {' '.join(f'{one:.1f}' for one in series)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="so many rounds of one step, instead of a few whole ones")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--every", type=int, default=50, help="rounds between two samples")
    parser.add_argument("--after", type=int, default=100, help="rounds after which nothing should grow")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds to watch idle processes")
    options = parser.parse_args()
    nodes = ["edge-0", *(f"device-{device}" for device in range(options.devices))]
    allow = {name: {"allow": "benchmarks"} for name in nodes}
    rounds, every, more = (options.rounds, options.every, TINY) if options.rounds else (4, 1, [])
    with tempfile.TemporaryDirectory() as folder:
        places, fed = {"PYTHONPATH": str(ROOT)}, Path(folder) / "fed"
        with LocalFederation(fed, 1, options.devices, node_config=allow, environment=places, timeout=600) as federation:
            for name in ("cold", "warm") if not options.rounds else ("long",):
                watched = Watched(federation, Path(folder) / name, rounds, every)
                watched.run(more)
            if options.rounds:
                show_growth(watched.taken, options.after)
            else:
                with torch_alone() as alone:
                    print(f"torch alone: USS {alone:.1f} MB; a round's processes:")
                    show({**watched.taken[max(watched.taken)], **samples(federation)})
            if options.idle:
                before = samples(federation)
                time.sleep(options.idle)
                after = samples(federation)
                print(f"CPU of idle processes, in percent of a core over {options.idle:g} s")
                for key in sorted(before.keys() & after.keys()):
                    print(f"  {key[0]:10} {key[1]:10} {100 * (after[key].cpu - before[key].cpu) / options.idle:.2f}")


if __name__ == "__main__":
    main()
