"""COMtune: accuracy over links that lose packets, of models tuned with dropout at the cut, in simulation and over UDP.

    python -m benchmarks.lossy_links --out outputs/lossy                                 # digits: minutes
    python -m benchmarks.lossy_links --data CIFAR10_FOLDER --model vgg5 --limit 5000 --values 256 --out outputs/lossy

A model is trained without losses; from there it is tuned with each rate r of dropout at the cut (r = 0: as long,
without dropout). Then each tuned model is tried over links that lose a share of the packets: interleaved, and with
neighbours in one packet; independently, and in bursts; and with samples over UDP on loopback through a proxy that loses
packets. Where nothing of a sample comes, it counts as computed from zeros. Beside them: how often a packet is sent
where lost ones are sent again.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fsl.strategies import VanillaSL
from torch import Tensor, nn

import fsl
from fsl.codecs import Identity, PacketLoss
from fsl.data import Examples, TaskData, cifar10, digits
from fsl.inference import SplitPoints
from fsl.inference.lossy import LossyProxy, UdpDevice, UdpEdge, outputs_over
from fsl.models import VGG5, LeNet
from fsl.packets import LossyLink, PacketChannel, Packing, Reception, retransmitted

MODELS = {"vgg5": (VGG5, "pool1"), "lenet": (LeNet, "pool1")}


def tuned(
    options: argparse.Namespace, data: TaskData, model: nn.Module, rate: float, seed: int, passes: int
) -> nn.Module:
    """Train a model for so many passes with dropout at the cut; returns it with its new weights."""
    run = fsl.simulate(
        model,
        data,
        cut=MODELS[options.model][1],
        strategy=VanillaSL(),
        devices=1,
        rounds=passes,
        batch_size=64,
        evaluate_every=passes,
        optimizer=fsl.Optimizer("torch.optim.Adam", options.rate, reset=False),
        up=PacketLoss(rate) if rate else Identity(),
        seed=seed,
    )
    assert run.model is not None
    return run.model


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Returns the percentage of rows whose class is told."""
    return 100 * float((outputs.argmax(1) == targets).float().mean())


def links(options: argparse.Namespace, loss: float) -> Mapping[str, LossyLink]:
    """Returns the simulated links of one loss, by name."""
    reception = Reception(rescale="measured")
    return {
        "interleaved": LossyLink(PacketChannel(loss), Packing(options.values), reception),
        "sequential": LossyLink(PacketChannel(loss), Packing(options.values, "sequential"), reception),
        "interleaved, in bursts of 8": LossyLink(PacketChannel(loss, 8.0), Packing(options.values), reception),
        "interleaved, not rescaled": LossyLink(PacketChannel(loss), Packing(options.values), Reception(rescale="none")),
    }


def over_udp(
    options: argparse.Namespace, points: SplitPoints, point: str, test: Examples, loss: float
) -> dict[str, float]:
    """Returns accuracy over UDP on loopback, with the share of packets that came and of samples that were answered."""
    packing, reception = Packing(options.values), Reception(waiting=0.2)
    rows = torch.arange(min(options.udp, len(test)))
    inputs, targets = test.batch(rows)
    edge = UdpEdge(points, "127.0.0.1:0", packing=packing, reception=reception)
    proxy = LossyProxy(edge.address, PacketChannel(loss), seed=1)
    device = UdpDevice(points, proxy.address, packing=packing)
    try:
        answers = device.infer(inputs, point, deadline=5.0, window=4)
    finally:
        for one in (device, proxy, edge):
            one.close()
    return {
        "accuracy": accuracy(answers.outputs, targets),
        "lost": proxy.lost / max(1, proxy.seen),
        "came": float(answers.share[answers.came].mean()),
        "answered": float(answers.came.float().mean()),
    }


def tried(options: argparse.Namespace, model: nn.Module, data: TaskData) -> dict[str, Any]:
    """Returns a model's accuracies by link and loss."""
    assert data.test is not None
    inputs, targets = data.test.batch(torch.arange(len(data.test)))
    point = MODELS[options.model][1]
    points = SplitPoints(model, inputs[:3], [point])
    found: dict[str, Any] = {}
    for loss in options.losses:
        for name, link in links(options, loss).items():
            outputs = outputs_over(points, point, inputs, link, seed=1).outputs
            found.setdefault(name, {})[loss] = accuracy(outputs, targets)
        if options.udp:
            found.setdefault("UDP", {})[loss] = over_udp(options, points, point, data.test, loss)
    return found


def main() -> None:
    """Tune, try, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or the folder of CIFAR-10's Parquet files")
    parser.add_argument("--limit", type=int, help="training rows")
    parser.add_argument("--model", choices=list(MODELS), default="lenet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7])
    parser.add_argument("--losses", type=float, nargs="+", default=[0, 0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--train", type=int, default=10, help="passes without losses")
    parser.add_argument("--tune", type=int, default=10, help="passes with dropout")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--values", type=int, default=8, help="of a packet")
    parser.add_argument("--udp", type=int, default=300, help="test rows over UDP; 0: none")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = digits() if options.data == "digits" else cifar10(options.data, limit=options.limit)
    kind, _ = MODELS[options.model]
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        torch.manual_seed(seed)
        first = tuned(options, data, kind(data.input_shape, data.classes), 0.0, seed, options.train)
        for rate in options.rates:
            model = tuned(options, data, copy.deepcopy(first), rate, seed + 100, options.tune)
            found.setdefault(f"{rate:g}", {})[str(seed)] = tried(options, model, data)
            print(f"seed {seed}, r = {rate:g}: {found[f'{rate:g}'][str(seed)]}", flush=True)
        (options.out / "lossy.json").write_text(json.dumps(found, indent=1))
    print(table(options, found))
    sent = ", ".join(f"{sent_again(loss):.2f} at {loss:g}" for loss in options.losses)
    print(f"\nwhere lost packets are sent again until all is there, a packet is sent so often: {sent}")


def sent_again(loss: float) -> float:
    """Returns how often a packet is sent, on average, until it is there."""
    found = retransmitted(PacketChannel(loss), 1000, 64, 0.0, torch.Generator().manual_seed(0))
    return float(found.sent.double().mean()) / 64


def table(options: argparse.Namespace, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns means over seeds, a row for each link and rate of dropout."""
    lines = ["| link | r | " + " | ".join(f"loss {loss:g}" for loss in options.losses) + " |"]
    lines.append("|---|---|" + "---|" * len(options.losses))
    for name in next(iter(next(iter(found.values())).values())):
        for rate, seeds in found.items():
            cells = []
            for loss in options.losses:
                values = [seed[name][loss] for seed in seeds.values()]
                numbers = [value["accuracy"] if isinstance(value, dict) else value for value in values]
                spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
                cells.append(f"{statistics.mean(numbers):.1f}{spread}")
            lines.append(f"| {name} | {rate} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
