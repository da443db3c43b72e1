"""Runs ten fixed commands and writes their models' digests, which no refactoring may change.

    python -m benchmarks.fixed_runs before.txt      # before the change
    python -m benchmarks.fixed_runs after.txt       # after it
    diff before.txt after.txt

Between them they have every strategy, Ray, moves, privacy, private fronts, codecs, kept optimizers and a resumed run.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = ["data=digits", "model=lenet", "devices=6", "rounds=2", "samples_per_device=60", "batch_size=20", "seed=3"]
RUNS = {
    "v1_on_ray": ["strategy=splitfed_v1", "backend=ray", "nodes=2", "edges=2", "optimizer=adam", "codec=int8"],
    "v2_dirichlet": ["strategy=splitfed_v2", "partition=dirichlet", "optimizer.reset=false", "edges=2"],
    "v3_resumed": ["strategy=splitfed_v3", "optimizer=adam", "optimizer.reset=false", "aggregator=fedadam"],
    "vanilla_labels": ["strategy=vanilla", "privacy=labels", "codec=float16"],
    "psl_dp_sgd": ["strategy=psl", "privacy=dp_sgd", "edges=2"],
    "sglr_private_fronts": ["strategy=sglr", "strategy.phi=0.5", "nodes=3", "devices_per_round=4"],
    "cyclesl_cut_noise": ["strategy=cyclesl", "privacy=[cut,nopeek]"],
    "fedavg_client_privacy": ["strategy=fedavg", "privacy=client", "partition=shards"],
    "decoupled": ["strategy=decoupled", "local_epochs=2", "aggregator=fedyogi", "edges=3"],
    "fedfly_moves": ["strategy=fedfly", "mobility=random", "mobility.p=0.5", "edges=2", "model=resnet8", "nodes=2"],
}


def command(overrides: list[str], folder: Path) -> None:
    """Run one command; CalledProcessError, with what it printed, where it fails."""
    place = f"hydra.run.dir={folder}"
    subprocess.run([sys.executable, "-m", "fsl.simulations.fsl_simulate", *COMMON, *overrides, place], check=True)


def digests(folder: Path) -> list[str]:
    """Returns a line with name and digest for each file of tensors in a run's folder, except checkpoints."""
    found = [p for p in sorted(folder.rglob("*.safetensors")) if "checkpoint" not in p.relative_to(folder).parts]
    return [f"{p.relative_to(folder)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in found]


def main() -> None:
    """Run the ten and write their digests."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, overrides in RUNS.items():
            folder = Path(temporary) / name
            if name.endswith("_resumed"):
                command([*overrides, "rounds=1"], folder)
                command([*overrides, f"resume={folder}"], folder)
            else:
                command(overrides, folder)
            lines += [f"{name}/{line}" for line in digests(folder)]
    parser.parse_args().out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
