"""Trained bottleneck units of several rates at the cut of one model, whose other weights all rates share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.codecs.codec import Payload, pack
from fsl.codecs.huffman import from_huffman_bytes, huffman_bytes, table_of
from fsl.codecs.learned import Learned
from fsl.errors import ConfigError, RunError, WireError

_LARGEST = 255  # code, so that each is a byte
_RATES = (
    {"channels": 64, "stride": 2, "step": 0.5},
    {"channels": 32, "stride": 2, "step": 0.5},
    {"channels": 32, "stride": 4, "step": 1.0},
)


class Units(Learned):
    """Bottleneck units, one a rate, of which `rate` (0 is the first) is at work; see `switch` and `only_units`.

    Encoder: depthwise 3x3 convolution of `stride`, BatchNorm, ReLU; 1x1 convolution to `channels`, BatchNorm, ReLU;
    quantizer `step` * round(x / step), through which the gradient goes straight. Decoder: transposed convolutions, 1x1
    with BatchNorm and ReLU, then depthwise with BatchNorm (no ReLU: smashed data may be below zero; 7x7 at stride 4,
    since 3x3 would reach only nine of sixteen places). A code is the number of steps, 0 to 255, and travels as one
    byte, or with `frequencies` by their Huffman table (see `fsl.codecs.Huffman`). Only images (B, C, H, W).

    Datta et al. 2022 (arXiv 2208.11596): only the unit is trained, beneath front and back that are all rates' own.
    """

    name: ClassVar[str] = "units"
    coded: ClassVar[bool] = True  # its own `encode` makes bytes of codes, in a chain, too

    @checks_types("units.")
    def __init__(
        self,
        rates: Sequence[Mapping[str, Any]] = _RATES,
        rate: int = 0,
        frequencies: Sequence[int] | None = None,
    ) -> None:
        if not rates:
            raise ConfigError("rates=[]: give at least one, as {channels: 32, stride: 2, step: 0.5}")
        self.rates = [_checked(one) for one in rates]
        if not 0 <= rate < len(self.rates):
            raise ConfigError(f"rate={rate!r}: which of the {len(self.rates)} rates is at work, from 0 on")
        self.rate = rate
        self.frequencies = None if frequencies is None else [int(count) for count in frequencies]
        self._table = None if self.frequencies is None else table_of(self.frequencies)
        self.rowwise = self._table is None  # type: ignore[misc]
        self.fixed_size = self._table is None  # type: ignore[misc]

    def modules(self, shape: torch.Size) -> tuple[nn.Module, nn.Module]:
        """Returns encoder and decoder of all rates for images (B, C, H, W)."""
        size, sides = shape[1:].numel(), shape[2:]
        if len(shape) != 4 or not size:
            raise ConfigError(f"units take smashed data (B, C, H, W), and the cut gives {tuple(shape)}; cut elsewhere")
        for one in self.rates:
            codes = int(one["channels"]) * math.prod(-(-side // int(one["stride"])) for side in sides)
            if codes > size:
                raise ConfigError(
                    f"rates: {one} makes {codes} codes of a sample of {size} values; give fewer channels, "
                    "or a larger stride"
                )
        pairs = [_unit(shape, int(one["channels"]), int(one["stride"]), float(one["step"])) for one in self.rates]
        return RateUnits([first for first, _ in pairs], self.rate), RateUnits([last for _, last in pairs], self.rate)

    def encode(self, values: Tensor) -> Payload:
        """Returns codes (B, channels, h, w) as bytes, or what their table makes of them; RunError for NaN."""
        if bool(values.isnan().any()):
            raise RunError("codec units got a value that is not finite; training has diverged: lower the learning rate")
        codes = values.detach().round().clamp(0, _LARGEST).to(torch.uint8)
        if self._table is None:
            return pack(self.name, values.dtype, ("values", codes))
        return pack(self.name, values.dtype, ("values", huffman_bytes(codes, self._table)), shape=codes.shape)

    def decode(self, payload: Payload) -> Tensor:
        """Returns the codes (B, channels, h, w) in the dtype that was encoded."""
        (given,) = payload.unpack(self.name, values=torch.uint8)
        shape = self.check_size(given.shape if self._table is None else payload.shape, payload.dtype)
        if len(shape) != 4 or shape[1] not in {one["channels"] for one in self.rates}:
            raise WireError(f"codec 'units' got codes of shape {tuple(shape)}, which no rate makes")
        return (given if self._table is None else from_huffman_bytes(given, shape, self._table)).to(payload.dtype)


class RateUnits(nn.Module):
    """Encoders or decoders, one a rate, of which the one of index `rate` is at work; the others are frozen."""

    def __init__(self, units: Sequence[nn.Module], rate: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.switch(rate)

    def switch(self, rate: int) -> None:
        """Put the unit of another rate to work."""
        self.rate = rate
        for number, unit in enumerate(self.units):
            unit.requires_grad_(number == rate)

    def forward(self, values: Tensor) -> Tensor:
        """Returns what the unit at work makes of values (B, C, H, W)."""
        unit: nn.Module = self.units[self.rate]
        made: Tensor = unit(values)
        return made


class StepQuantizer(nn.Module):
    """Counts steps: round(x / step), at most 255; its gradient is that of x / step, and 0 beyond 255."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, values: Tensor) -> Tensor:
        """Returns whole numbers, of the values' shape and dtype."""
        steps = (values / self.step).clamp(max=_LARGEST)
        return steps + (steps.round() - steps).detach()


class StepScale(nn.Module):
    """Makes values of numbers of steps."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, codes: Tensor) -> Tensor:
        """Returns step * codes."""
        return self.step * codes


def switch(model: nn.Module, rate: int) -> None:
    """Put the units of one rate to work wherever a model, or a part of one, has units; no weight changes.

    In training these units are trained, and those of other rates are frozen. ConfigError where there are none, or not
    so many.
    """
    found = _units_in(model)
    if not found:
        raise ConfigError("the model has no bottleneck units; Units.modules makes them")
    for one in found:
        if not 0 <= rate < len(one.units):
            raise ConfigError(f"rate={rate!r}: the model has {len(one.units)} rates, the first is 0")
    for one in found:
        one.switch(rate)


def only_units(model: nn.Module) -> nn.Module:
    """Freeze all weights and BatchNorm statistics of a model but those of the units at work; returns the model.

    All other modules are in evaluation mode then, in which fsl leaves them. The model itself says that it is in
    training: fsl trains models as a whole that say otherwise. Before a run, whose units are made later, this freezes
    all that there is. After `switch`, `eval` or `train`, call it again; `model.requires_grad_(True).train()` undoes it.
    """
    model.requires_grad_(False).eval()
    for one in _units_in(model):
        one.units[one.rate].requires_grad_(True).train()
    model.training = True
    return model


def _units_in(model: nn.Module) -> list[RateUnits]:
    return [module for module in model.modules() if isinstance(module, RateUnits)]


def _unit(shape: torch.Size, channels: int, stride: int, step: float) -> tuple[nn.Module, nn.Module]:
    """Returns one rate's encoder and decoder for images of this shape (B, C, H, W)."""
    width = shape[1]
    encoder = nn.Sequential(
        nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        StepQuantizer(step),
    )
    kernel = max(3, 2 * stride - 1)  # reaches every place, the last ones included
    missing = (shape[2] - 1) % stride, (shape[3] - 1) % stride  # rows and columns behind the last that a stride reaches
    decoder = nn.Sequential(
        StepScale(step),
        nn.ConvTranspose2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, width, kernel, stride, kernel // 2, missing, groups=width, bias=False),
        nn.BatchNorm2d(width),
    )
    return encoder, decoder


def _checked(rate: Mapping[str, Any]) -> dict[str, int | float]:
    """Returns a rate; ConfigError for what is none."""
    numbers = {key: value for key, value in dict(rate).items() if type(value) in (int, float)}
    if set(rate) != {"channels", "stride", "step"} or len(numbers) < 3:
        raise ConfigError(f"rates: {rate!r} is none; give numbers {{channels: 32, stride: 2, step: 0.5}}")
    channels, stride, step = numbers["channels"], numbers["stride"], numbers["step"]
    if not (isinstance(channels, int) and isinstance(stride, int) and channels >= 1 and stride >= 1):
        raise ConfigError(f"rates: {rate!r}: channels and stride are whole numbers, 1 or more")
    if not 0 < step < float("inf"):
        raise ConfigError(f"rates: {rate!r}: step is what a code counts, above 0")
    return {"channels": channels, "stride": stride, "step": step}
