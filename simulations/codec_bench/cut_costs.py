"""Measures what a codec costs device and edge: time, FLOPs and numbers kept, on a batch at the cut."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fsl.codecs.chain import Chain
from fsl.codecs.codec import Codec, Way
from fsl.codecs.codec_choice import build_codecs
from fsl.codecs.codec_maker import codec_maker
from fsl.codecs.cut_codec import CutCodec
from fsl.codecs.cut_ends import AnsweringEnd, SendingEnd
from fsl.data import TaskData
from fsl.errors import ConfigError
from fsl.files import load_tensors
from fsl.run.config import RunConfig, build_model, build_objective, build_places, read_config
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values, activations_of, of_activations, received
from fsl.split.coded_model import CodedModel, uncoded
from fsl.split.coding import coded
from fsl.split.cutting import split

_WARM, _TIMED = 3, 15  # steps before those that are timed, and steps whose median is told
_SEED = 0


@dataclass(frozen=True)
class CutCosts:
    """What a codec costs beside the model, for a sample of a training step, on one core.

    `device_seconds`: to encode smashed data and decode the gradient; `edge_seconds`: to decode smashed data and encode
    the gradient; trained codecs' forward and backward passes are among them. FLOPs are those of matrix products,
    convolutions and Fourier transforms: nothing else is counted. `parameters` are trained, `kept` are other numbers
    that a codec holds, as keys. `values` and `value_bytes`: what crosses without a codec.
    """

    device_seconds: float
    edge_seconds: float
    device_flops: float
    edge_flops: float
    parameters: int
    kept: int
    values: int
    value_bytes: int


def cut_costs(config: DictConfig, data: TaskData, weights: Path | None = None) -> CutCosts:
    """Measure the codec of a run's configuration on the first training batch of its data.

    `weights`: the trained model of a finished run, codec included; without it the weights are those that it begins
    with. ConfigError for what a run would be refused for at the cut.
    """
    top = read_config(config)
    step = _Step.of(top, data, weights)
    with _one_core(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        times = [step.take(number) for number in range(_WARM + _TIMED)][_WARM:]
        device, edge = (median(each) / step.rows for each in zip(*times))
        counted = step.take(_WARM + _TIMED, counting=True)
    crossing = activations_of(step.smashed)
    return CutCosts(
        device_seconds=device,
        edge_seconds=edge,
        device_flops=counted[0] / step.rows,
        edge_flops=counted[1] / step.rows,
        parameters=sum(p.numel() for part in (step.encoder, step.decoder) for p in part.parameters()),
        kept=sum(t.numel() for codec in step.made for t in _tensors(vars(codec).values())),
        values=sum(t.numel() for t in crossing) // step.rows,
        value_bytes=sum(t.nbytes for t in crossing) // step.rows,
    )


class _Step:
    """A training step of one device as far as its cut is concerned."""

    def __init__(self, smashed: Values, encoder: nn.Module, decoder: nn.Module, top: RunConfig) -> None:
        self.smashed = smashed
        self.encoder, self.decoder = encoder, decoder
        self.rows = len(activations_of(smashed)[0])
        specs = build_codecs(top.codec)
        self.made: list[Codec] = []  # the device's
        makers = [codec_maker(specs[way], ("fsl", *top.allowed)) for way in ("up", "down")]
        up, down = makers
        self._refuse_unfit({"up": up(), "down": down()}, top.training.batch_size)
        self.device = SendingEnd(CutCodec(_noted(up, self.made)), CutCodec(_noted(down, self.made)))
        self.edge = AnsweringEnd(CutCodec(up), CutCodec(down))

    def _refuse_unfit(self, codecs: Mapping[Way, Codec], batch: int) -> None:
        """ConfigError for codecs that cannot carry what a full batch gives at the cut."""
        with torch.no_grad(), evaluating(self.encoder):
            crossing = activations_of(self._through(self.encoder, self.smashed)[0])
        for way, codec in codecs.items():
            try:
                codec.refuse_use(way)
                for tensor in crossing if way == "up" else ():
                    codec.refuse_unfit(torch.Size((batch, *tensor.shape[1:])))
            except ConfigError as error:
                raise ConfigError(f"codec.{way}={codec.name}: {error}") from None

    @classmethod
    def of(cls, top: RunConfig, data: TaskData, weights: Path | None) -> "_Step":
        model, cut = build_model(top.model, data, top.training.seed, build_objective(top.objective))
        places = build_places(top.model)
        up = codec_maker(build_codecs(top.codec)["up"], ("fsl", *top.allowed))()
        module = coded(model, cut, places, up, data.blank(2), top.training.seed)
        if weights is not None:
            module.load_state_dict(load_tensors(weights))
        front = split(uncoded(module), cut, data.blank(2), places).segments[0].module
        rows = torch.arange(min(top.training.batch_size, len(data.train)))
        with evaluating(front), torch.no_grad():
            smashed = received(call(front, data.train.batch(rows)[0]))
        has_codec = isinstance(module, CodedModel)
        return cls(
            smashed,
            module.encoder if has_codec else nn.Identity(),  # type: ignore[arg-type]
            module.decoder if has_codec else nn.Identity(),  # type: ignore[arg-type]
            top,
        )

    def take(self, number: int, counting: bool = False) -> tuple[float, float]:
        """Take a step; returns the seconds of device and edge, or where it counts their FLOPs."""
        device, edge = (_Flops() if counting else _Seconds() for _ in range(2))
        with device:
            values, back = self._through(self.encoder, self.smashed)
            up = self.device.send(number, values)
        with edge:
            decoded = self.edge.receive(number, up)
            outputs, forth = self._through(self.decoder, decoded)
        gradient = of_activations([torch.randn_like(t) / t.numel() for t in activations_of(outputs)], outputs)
        assert gradient is not None
        with edge:
            down = self.edge.answer(number, forth(gradient))
        assert down is not None
        with device:
            back(self.device.hear(number, down))
        return device.total, edge.total

    def _through(self, part: nn.Module, values: Values) -> tuple[Values, Callable[[Values], Values]]:
        """Returns what a trained half makes of values, and what takes a gradient back through it."""
        if isinstance(part, nn.Identity):
            return values, lambda gradient: gradient
        assert isinstance(values, Tensor)
        leaf = values.detach().requires_grad_()
        with evaluating(part):
            made = part(leaf)

        def back(gradient: Values) -> Values:
            assert isinstance(gradient, Tensor)
            made.backward(gradient)
            assert leaf.grad is not None
            return leaf.grad

        return made.detach(), back


class _Seconds:
    """Adds up the seconds of several blocks."""

    total = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: Any) -> None:
        self.total += time.perf_counter() - self._began


class _Flops:
    """Adds up the FLOPs of several blocks."""

    total = 0.0

    def __enter__(self) -> None:
        self._counter = FlopCounterMode(display=False, custom_mapping=_TRANSFORMS)
        self._counter.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._counter.__exit__(*exception)
        self.total += self._counter.get_total_flops()


def _noted(make: Callable[[], Codec], made: list[Codec]) -> Callable[[], Codec]:
    def noting() -> Codec:
        codec = make()
        made.extend(codec.stages if isinstance(codec, Chain) else [codec])
        return codec

    return noting


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


@contextmanager
def _one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _transform_flops(inputs: Any, *others: Any, out_val: Tensor, **named: Any) -> int:
    """FLOPs of transforms along the last dimension by their textbook count: 5 n log2 n, half of it for real ones."""
    length = max(inputs.shape[-1], out_val.shape[-1])
    each = (5 if inputs.is_complex() and out_val.is_complex() else 2.5) * length * math.log2(max(2, length))
    return int(math.prod(inputs.shape[:-1]) * each)


_transform_flops._get_raw = True  # type: ignore[attr-defined] # torch then passes tensors, and not their shapes
_FFT = torch.ops.aten
_TRANSFORMS = dict.fromkeys((_FFT._fft_r2c, _FFT._fft_c2r, _FFT._fft_c2c), _transform_flops)


def refuse_unmeasured(config: DictConfig) -> None:
    """ConfigError for runs whose cut is not one between a device and its edge."""
    top = read_config(config)
    if top.cuts is not None:
        raise ConfigError("cuts=...: codecs are compared at one cut; give model.cut")
    cut = top.model.get("cut")
    if isinstance(cut, list) and len(cut) > 1:
        raise ConfigError(f"model.cut={cut}: codecs are compared at one cut; give one")
    if "vertical" in str(top.strategy.get("_target_", "")).lower():
        raise ConfigError("strategy=vertical: codecs are compared where each device has its own samples")
