"""Measures codecs beside copying the same float32 values, and C3's FFT beside direct circular convolution; one thread.

    python -m benchmarks.codec_speed

A turn copies (`torch.Tensor.clone`), then encodes and decodes, codec after codec; the median over turns of what a codec
takes, over that of all copies in between, counts: what a copy takes depends on what ran before it. Values are those
behind a ReLU of normal numbers. Learned codecs run their modules, too, as inference does. Direct convolution is the
faster of two: products with circulant matrices of the keys, made before, and `conv1d` of circularly padded rows.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.processes import Row, write_rows
from fsl.codecs import (
    C3,
    VQ,
    Adaptive,
    BFloat16,
    Binary,
    Bottleneck,
    Chain,
    Codec,
    Entropic,
    ErrorBounded,
    FedLite,
    Float16,
    Identity,
    Int2,
    Int4,
    Int8,
    Learned,
    RandTopK,
    Rans,
    TopK,
    Units,
    Zstd,
)
from fsl.codecs.codec import CodecCall
from fsl.errors import ConfigError
from fsl.importing.spec import Spec
from fsl.seeds import Stream

SHAPES = ((64, 64, 8, 8), (256, 2048))
WIDTHS = (256, 512, 1024, 2048, 4096, 8192)
ROWS, RATIO = 64, 4  # of a batch for C3


def codecs() -> dict[str, Codec]:
    """Returns all built-in codecs with their defaults, and some with other arguments."""
    int8 = {"_target_": Spec(Int8).target}
    return {
        "identity": Identity(),
        "float16": Float16(),
        "bfloat16": BFloat16(),
        "int8": Int8(),
        "int8, per sample": Int8(per="sample"),
        "int8, per channel": Int8(per="channel"),
        "int8, stochastic": Int8(stochastic=True),
        "int8, stochastic, per sample": Int8(per="sample", stochastic=True),
        "int4": Int4(),
        "int4, stochastic": Int4(stochastic=True),
        "int2": Int2(),
        "binary": Binary(),
        "binary, scale=row": Binary(scale="row"),
        "topk": TopK(),
        "randtopk": RandTopK(),
        "c3": C3(),
        "error_bounded": ErrorBounded(),
        "zstd": Zstd(),
        "rans": Rans(),
        "fedlite": FedLite(),
        "chain of c3 and int8": Chain([{"_target_": Spec(C3).target}, int8]),
        "adaptive": Adaptive([{"_target_": Spec(Identity).target}, int8], ratio=2.0),
        "bottleneck": Bottleneck(),
        "vq": VQ(),
        "units": Units(),
        "entropic": Entropic(),
    }


def whole(codec: Codec, values: Tensor) -> Callable[[], Tensor]:
    """Returns a function that encodes and decodes values (B, ...), by a session's two ends."""
    device, edge = codec, copy.deepcopy(codec)  # some remember what crossed
    before: Callable[[Tensor], Tensor] = Tensor.detach
    behind: Callable[[Tensor], Tensor] = Tensor.detach
    if isinstance(codec, Learned):
        encoder, decoder = codec.modules(values.shape)
        before, behind = encoder.eval(), decoder.eval()
    step = 0

    def both() -> Tensor:
        nonlocal step
        step += 1
        call = CodecCall(Stream(0, "codec"), step, training=False)
        with torch.no_grad():
            return behind(edge.at(call).decode(device.at(call).encode(before(values))))

    return both


def taken(way: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def medians(turns: int, pairs: Sequence[tuple[Callable[[], Tensor], ...]]) -> list[list[float]]:
    """Returns the median time of each function of each group; all in turn."""
    found = [[[taken(way) for way in pair][:0] for way in pair] for pair in pairs]  # once before it counts
    for _ in range(turns):
        for times, pair in zip(found, pairs):
            for own, way in zip(times, pair):
                own.append(taken(way))
    return [[statistics.median(own) for own in times] for times in found]


def compare(shape: Sequence[int], turns: int, only: str) -> list[Row]:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).relu()
    ways: dict[str, Callable[[], Tensor]] = {}
    for name, codec in codecs().items():
        if only not in name:
            continue
        try:
            ways[name] = whole(codec, values)
            ways[name]()
        except ConfigError as error:
            ways.pop(name, None)
            print(f"{name}: {error}", flush=True)
    found = medians(turns, [(values.clone, way) for way in ways.values()])
    copy = statistics.median(copy for copy, _ in found)
    print(f"\n{tuple(shape)}: a copy of {values.nbytes / 2**20:g} MiB takes {1e3 * copy:.3f} ms")
    print("| codec | encode and decode | over the copy |\n|---|---|---|")
    rows: list[Row] = []
    for name, (_, both) in zip(ways, found):
        print(f"| {name} | {1e3 * both:.2f} ms | {both / copy:.1f} |", flush=True)
        target = 10.0 if name in ("int8", "binary") else None
        row = {"what": f"{name}, {tuple(shape)}", "ms": round(1e3 * both, 3), "over a copy": round(both / copy, 1)}
        rows.append(row | {"target": target})
    return rows


def by_matrix(keys: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns direct binding by products with circulant matrices."""
    width = keys.shape[1]
    places = torch.arange(width)
    circulant = keys[:, (places[None, :] - places[:, None]) % width]  # (R, D, D): z @ it convolves
    return lambda rows: torch.einsum("grd,rde->ge", rows.unflatten(0, (-1, len(keys))), circulant)


def by_conv1d(keys: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns direct binding by a convolution of circularly padded rows, whose channels are a group's rows."""
    kernel, width = keys.flip(1).unsqueeze(0), keys.shape[1]

    def bind(rows: Tensor) -> Tensor:
        groups = rows.unflatten(0, (-1, len(keys)))
        return F.conv1d(torch.cat((groups[..., 1:], groups), dim=-1), kernel)[:, 0, :width]

    return bind


def compare_c3(width: int, turns: int) -> None:
    """Print how long the sums of bound rows take by the FFT, and directly, and what they agree to."""
    codec = C3(RATIO)
    rows = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0))
    fft = lambda: codec.project(rows).values  # noqa: E731
    wanted = fft()
    spectra = codec._keys(width, torch.fft.rfft(rows))
    keys = torch.fft.irfft(spectra, n=width)
    ways: Mapping[str, Callable[[Tensor], Tensor]] = {"matrix": by_matrix(keys), "conv1d": by_conv1d(keys)}
    for name, way in ways.items():
        assert torch.allclose(way(rows), wanted, atol=1e-3), name
    fewer = max(3, turns * 256 // width)
    found = medians(fewer, [(fft, *(partial(way, rows) for way in ways.values()))])[0]
    own, *direct = (1e3 * one for one in found)
    said = " | ".join(f"{one:.2f} ms" for one in direct)
    print(f"| {width} | {own:.2f} ms | {said} | {min(direct) / own:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--only", default="", help="a part of the names of the codecs that are measured")
    parser.add_argument("--no-c3", action="store_true")
    parser.add_argument("--out", help="also write the rows of codecs to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for shape in SHAPES for row in compare(shape, options.turns, options.only)]
    if options.out:
        write_rows(options.out, rows)
    if options.no_c3:
        return
    print(f"\nC3, {ROWS} rows, {RATIO} of them as one: binding")
    print("| D | FFT | matrix | conv1d | the faster direct way over FFT |\n|---|---|---|---|---|")
    with torch.no_grad():
        for width in WIDTHS:
            compare_c3(width, options.turns)


if __name__ == "__main__":
    main()
