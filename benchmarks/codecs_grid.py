"""Every codec on VGG5 and CIFAR-10, three paired seeds, 10 passes, stated beforehand.

    python -m benchmarks.codecs_grid CIFAR10_FOLDER --out outputs/codecs --jobs 2

10,000 training images, the 10,000 test images, five devices of SplitFed V1, batches of 64, Adam at 0.001, no
augmentation; the accuracy is that after the last round. It is a call of fsl-codecs, and goes on where it was
interrupted. About two hours on two cores.
"""

import argparse
import sys
from pathlib import Path

from fsl.simulations.fsl_codecs import command

ROUNDS = 10
CODECS = (
    "float16",
    "bfloat16",
    "int8",
    "int4",
    "int2",
    "binary",
    "topk k=0.1",
    "topk k=0.02",
    "topk k=0.005",
    "randtopk k=0.02",
    "c3 ratio=2",
    "c3 ratio=4",
    "c3 ratio=8",
    "c3 ratio=16",
    "[c3 ratio=8,int8]",
    "[c3 ratio=16,int8]",
    "[c3 ratio=16,int4]",
    "bottleneck",
    "[bottleneck,int8]",
    "units",
    "vq",
    "fedlite",
    "entropic",
    "error_bounded codec.down=error_bounded",
    "zstd",
)
IMAGES = ("jpeg:75", "jpeg:25", "jpeg:10", "webp:50", "webp:10")


def arguments(data: Path, out: Path, jobs: int, more: list[str]) -> list[str]:
    """Returns the arguments of fsl-codecs."""
    run = ["data=cifar10", f"data.path={data}", "data.limit=10000", "model=vgg5", "devices=5", "batch_size=64"]
    run += [f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}", "optimizer=adam", "optimizer.reset=false", *more]
    codecs = [part for codec in CODECS for part in ("--codec", codec)]
    return [*run, *codecs, "--images", *IMAGES, "--seeds", "0", "1", "2", "--jobs", str(jobs), "--out", str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    options, more = parser.parse_known_args()
    sys.exit(command(arguments(options.data, options.out, options.jobs, more)))


if __name__ == "__main__":
    main()
