"""Attacks B-SL beside the plain model and noise at the cut: accuracy, bytes, and what inversion and FSHA restore.

    python -m benchmarks.binary_attacks                               # digits: about 25 minutes of one core
    python -m benchmarks.binary_attacks --data FOLDER --limit 2000    # CIFAR-10's Parquet files: longer

Noise at the cut demands a front that keeps samples apart, so that B-SL has group normalisation there; what is noised
crosses as signs all the same. SplitFed V1 trains each variant with each seed; then an honest but curious edge inverts
it, and a hijacking edge trains it again, with the same budgets. Both see what the codec leaves. Mean and standard
deviation over seeds.

Controls: the mean picture of what the adversary knows; inversion of a front with first weights (its batch normalisation
measured on the adversary's data); FSHA whose cut gradients are scaled to nothing, so that fronts learn nothing of it.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fsl.simulations.attacks.attacked_runs import read_target
from fsl.simulations.fsl_simulate import command as simulate
from torch import nn

from fsl.attacks import FSHA, Attack, Inversion, Target

NOTHING = 1e-38  # a scale at which Adam's steps vanish, too


def variants(options: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the arguments of each variant's run."""
    plain = ["model=vgg5"]
    binary = ["model=binary_vgg5", f"model.upto={options.cut}", "codec=binary"]
    leak = ["privacy=nopeek", f"privacy.nopeek.weight={options.leak}"]
    made = {"plain": plain, f"plain, leak loss {options.leak:g}": [*plain, *leak]}
    for noise in options.noises:
        made[f"plain, noise {noise:g}"] = [*plain, *noised(noise)]
    made |= {"B-SL": binary, f"B-SL, leak loss {options.leak:g}": [*binary, *leak]}
    for noise in options.noises:
        made[f"B-SL, group norm, noise {noise:g}"] = [*binary, "model.norm=group", *noised(noise)]
    return made


def noised(multiplier: float) -> list[str]:
    return ["privacy=cut", f"privacy.cut.noise_multiplier={multiplier}"]


def trained(folder: Path, options: argparse.Namespace, seed: int, own: Sequence[str]) -> Mapping[str, float]:
    """Train a run into a folder; returns its last row of metrics."""
    data = ["data=digits"]
    if options.data != "digits":
        data = ["data=cifar10", f"data.path={options.data}", f"data.limit={options.limit}", "data.test_limit=1000"]
    arguments = [
        *data,
        f"hydra.run.dir={folder}",
        f"seed={seed}",
        f"devices={options.devices}",
        f"rounds={options.rounds}",
        f"evaluate_every={options.rounds}",
        "evaluate_leakage=300",
        "batch_size=32",
        "optimizer=adam",
        "optimizer.lr=0.005",
        f"model.cut={options.cut}",
        *own,
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = simulate(arguments)
    if code:
        sys.exit(f"a run failed with {arguments}:\n{said.getvalue()}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: Mapping[str, float] = next(row for row in reversed(rows) if "accuracy" in row)
    return found


def sent_bytes(target: Target) -> float:
    """Returns the bytes of a row in a full batch of smashed data."""
    inputs, _ = target.victims(target.batch_size)
    payload = target.up.build().encode(target.clean(inputs))
    return sum(tensor.nbytes for _, tensor in payload.arrays) / len(inputs)


def attacked(target: Target, attack: Attack) -> Mapping[str, float]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return attack.run(target).figures


def untrained(target: Target) -> Target:
    """Returns the target with a front of first weights, whose batch normalisation knows the adversary's data."""
    front = target.blank()
    for module in front.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean of all batches
    front.train()
    with torch.no_grad():
        for rows in torch.arange(len(target.known)).split(64):
            front(target.known.batch(rows)[0])
    return replace(target, front=front.eval())


def in_words(values: Sequence[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def line(name: str, rows: Sequence[Mapping[str, float]]) -> str:
    cells = [name]
    for key, digits in COLUMNS.items():
        values = [row[key] for row in rows if key in row]
        cells.append(in_words(values, digits) if values else "")
    return f"| {' | '.join(cells)} |"


COLUMNS = {  # decimals of each
    "accuracy": 3,
    "bytes": 0,
    "dcor": 3,
    "inversion mse": 4,
    "inversion ssim": 2,
    "fsha mse": 3,
    "fsha ssim": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or a folder with CIFAR-10's Parquet files")
    parser.add_argument("--limit", type=int, default=2000, help="training rows of CIFAR-10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", type=float, nargs="*", default=[0.05], help="multipliers, at a clip of 1")
    parser.add_argument("--leak", type=float, default=10.0, help="weight of the leak loss")
    parser.add_argument("--cut", default="pool1")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="of training, and of hijacking")
    parser.add_argument("--steps", type=int, default=1000, help="of inversion's decoder")
    parser.add_argument("--turns", type=int, default=3, help="of the hijacker for each upload")
    parser.add_argument("--only", help="a part of the names of the variants that are to run")
    parser.add_argument("--no-attacks", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    inversion, fsha = Inversion(steps=options.steps), FSHA(turns=options.turns)
    began, blind = time.process_time(), []
    print(f"| variant | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}", flush=True)
    for name, own in variants(options).items():
        if options.only is not None and options.only not in name:
            continue
        rows: list[dict[str, float]] = []
        controls: list[dict[str, float]] = []
        for seed in options.seeds:
            with TemporaryDirectory() as place:
                last = trained(Path(place) / "run", options, seed, own)
                target = read_target(Path(place) / "run", 0)
                row = {"accuracy": last["accuracy"], "bytes": sent_bytes(target), "dcor": last["distance_correlation"]}
                rows.append(row)
                if options.no_attacks:
                    continue
                for label, attack in (("inversion", inversion), ("fsha", fsha)):
                    found = attacked(target, attack)
                    row |= {f"{label} mse": found["mse"], f"{label} ssim": found["ssim"]}
                blind.append({f"{label} {of}": found[f"blind_{of}"] for label in ("inversion", "fsha") for of in OF})
                if name in ("plain", "B-SL"):
                    found = attacked(untrained(target), inversion)
                    controls.append({f"inversion {of}": found[of] for of in OF})
                    if seed == options.seeds[0]:
                        found = attacked(target, replace(fsha, scale=NOTHING))
                        controls[-1] |= {f"fsha {of}": found[of] for of in OF}
        print(line(name, rows), flush=True)
        if controls:
            print(line(f"{name}: control, front not trained or hijacked", controls), flush=True)
    if blind:
        print(line("control: the mean picture", blind))
    print(f"\n{options}; {(time.process_time() - began) / 60:.1f} minutes of processor time")


OF = ("mse", "ssim")


if __name__ == "__main__":
    main()
