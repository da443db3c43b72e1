"""Peak memory of 100 devices a round out of 10,000, over 100 out of 1,000: private fronts, resampled data.

    python -m benchmarks.memory

Each case is a process of its own; the operating system's account of its peak (ru_maxrss) counts.
"""

import argparse
import json
import subprocess
import sys

from benchmarks.processes import write_rows

CASE = """
import resource, sys, json
import fsl
from fsl.data import Resample, digits
from fsl.models import VGG5
from fsl.strategies import SplitFedV3

data = digits()
fsl.simulate(
    VGG5(data.input_shape, data.classes), data, strategy=SplitFedV3(), devices=int(sys.argv[1]), devices_per_round=100,
    partition=Resample(64), rounds=int(sys.argv[2]), evaluate_devices=20,
    optimizer=fsl.Optimizer("torch.optim.SGD", 0.05, reset=False),
)
print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def peak_megabytes(devices: int, rounds: int) -> float:
    command = [sys.executable, "-c", CASE, str(devices), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    return float(json.loads(done.stdout.splitlines()[-1])["peak"]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", help="also write the row to this file")
    given = parser.parse_args()
    few, many = (peak_megabytes(devices, given.rounds) for devices in (1_000, 10_000))
    print(f"100 of 1,000: {few:.0f} MB; 100 of 10,000: {many:.0f} MB; ratio {many / few:.3f} (target < 1.10)")
    if given.out:
        row = {"what": "peak of 100 devices a round out of 10,000", "MB": round(many), "over 1,000": many / few}
        write_rows(given.out, [row | {"target": 1.10}])
    sys.exit(many / few >= 1.10)


if __name__ == "__main__":
    main()
