"""Measures accuracy under DP-SGD: SplitFed V1 beside FedAvg on the unsplit model, with the same draws.

python -m benchmarks.privacy digits
python -m benchmarks.privacy cifar10 --data FOLDER
python -m benchmarks.privacy recipe        (where privacy also bounds the edge: benchmarks.local_privacy)
"""

import argparse
from dataclasses import dataclass

import torch
from fsl.strategies import FedAvg, SplitFedV1
from torch import nn

import fsl
from benchmarks import local_privacy
from fsl.data import TaskData, cifar10, digits
from fsl.models import MLP, LeNet
from fsl.privacy import DPSGD, Privacy
from fsl.settings.federation_settings import CloudStrategy
from fsl.settings.optimizer_settings import Optimizer

EPSILONS = (None, 8.0, 3.0, 1.0)
DEVICES = 10


@dataclass(frozen=True)
class Recipe:
    """Common settings of one data set's runs; front and back share one clip."""

    model: str
    rounds: int
    batch_size: int  # expected, of Poisson draws
    lr: float
    clip: float


RECIPES = {
    "digits": Recipe("MLP", rounds=40, batch_size=64, lr=1.0, clip=0.5),
    "cifar10": Recipe("LeNet", rounds=10, batch_size=256, lr=1.0, clip=0.5),
}


def model_of(recipe: Recipe, data: TaskData) -> nn.Module:
    torch.manual_seed(0)
    if recipe.model == "MLP":
        return MLP(data.input_shape, data.classes, hidden=(64,))
    return LeNet(data.input_shape, data.classes)


def accuracy(recipe: Recipe, data: TaskData, strategy: CloudStrategy, epsilon: float | None) -> tuple[float, float]:
    """Returns the final accuracy, and the epsilon spent against who gets the model."""
    privacy = None
    if epsilon is not None:
        privacy = Privacy(dp_sgd=DPSGD(target_epsilon=epsilon, clip=recipe.clip, clipping="joint"), delta=1e-5)
    run = fsl.simulate(
        model_of(recipe, data),
        data,
        strategy=strategy,
        devices=DEVICES,
        rounds=recipe.rounds,
        batch_size=recipe.batch_size,
        optimizer=Optimizer("torch.optim.SGD", lr=recipe.lr if epsilon is not None else 0.1),
        evaluate_every=recipe.rounds,
        privacy=privacy,
    )
    last = run.metrics[-1]
    return last["accuracy"], last.get("epsilon_model", float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*sorted(RECIPES), "recipe"])
    parser.add_argument("--data", help="folder with CIFAR-10's Parquet files")
    parser.add_argument("--limit", type=int, default=20_000, help="training rows of CIFAR-10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.name == "recipe":
        local_privacy.main()
        return
    data = digits() if options.name == "digits" else cifar10(options.data, limit=options.limit)
    recipe = RECIPES[options.name]
    print(f"{options.name}: {len(data.train):,} samples on {DEVICES} devices, {recipe}, delta 1e-5", flush=True)
    for epsilon in EPSILONS:
        split, spent = accuracy(recipe, data, SplitFedV1(), epsilon)
        whole, _ = accuracy(recipe, data, FedAvg(), epsilon)
        print(f"epsilon {epsilon}: spent {spent:.3f}, SplitFed V1 {split:.4f}, FedAvg {whole:.4f}", flush=True)


if __name__ == "__main__":
    main()
