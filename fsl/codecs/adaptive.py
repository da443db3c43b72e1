"""Picks for each message the finest of several codecs whose payload fits a budget."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.codecs.chain import spec_of
from fsl.codecs.codec import Codec, Payload, Way
from fsl.codecs.composite import Composite
from fsl.codecs.learned import Learned
from fsl.codecs.through import Restore, Through
from fsl.errors import ConfigError, WireError

_MOST = 16  # choices
_MOST_SIZES = 256  # that are remembered
_INSIDE = str.maketrans("/", ":")  # a chain outside of this one would take a slash for its own
_OUTSIDE = str.maketrans(":", "/")


class Adaptive(Composite):
    """Sends each message by the first of `choices`, from the finest to the coarsest, whose payload fits.

    What fits is at most `budget` bytes; or 1 / `ratio` of the values' own bytes; or what the device's link carries up
    in `seconds`, by its profile (`link`) when the round begins. With several of these the least counts. Bytes are
    those of a payload's arrays, without the message's head. Where several tensors cross in one message, each has the
    share of `budget` and `seconds` that it has of their bytes. Where nothing fits, the coarsest goes.

    An array's name tells which choice made it, so the other end follows from message to message. The sizes of codecs
    whose payloads are of a fixed size are known by shape and dtype; others encode to be weighed. Gradients go through
    it where they go through every choice. It is row-wise where every choice is and is of a fixed size, by `ratio`
    alone: a share does not depend on how many rows a batch has.
    """

    name: ClassVar[str] = "adaptive"
    chains: ClassVar[bool] = False

    @checks_types("adaptive.")
    def __init__(
        self,
        choices: Sequence[Mapping[str, Any]],
        budget: int | None = None,
        ratio: float | None = None,
        seconds: float | None = None,
    ) -> None:
        """`choices`: each codec as `{_target_: the import path of its class}` with its arguments, finest first."""
        if not 1 <= len(choices) <= _MOST:
            raise ConfigError(f"choices={list(choices)!r}: give 1 to {_MOST} codecs, from the finest to the coarsest")
        if budget is ratio is seconds is None:
            raise ConfigError("budget, ratio and seconds are null: give one of them, as codec.up.ratio=8")
        for name, value in (("budget", budget), ("ratio", ratio), ("seconds", seconds)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value!r}: give a number above 0, or null for none")
        self.budget, self.ratio, self.seconds = budget, ratio, seconds
        self._parts = self.choices = [spec_of(choice).build() for choice in choices]
        for choice in self.choices:
            _refuse(choice)
        through = [isinstance(choice, Through) and choice.differentiable for choice in self.choices]
        if any(through) and not all(through):
            one, other = self.choices[through.index(True)].name, self.choices[through.index(False)].name
            raise ConfigError(
                f"choices: gradients go through {one} and not through {other}, so that what goes down would differ "
                "from step to step; take codecs of one kind"
            )
        self._through = all(through)
        self.follows_link = seconds is not None  # type: ignore[misc]
        self.fixed_size = seconds is None and all(choice.fixed_size for choice in self.choices)  # type: ignore[misc]
        self.rowwise = (  # type: ignore[misc]
            budget is None and self.fixed_size and all(choice.rowwise for choice in self.choices)
        )
        self._sizes: dict[tuple[int, torch.Size, torch.dtype], int] = {}

    @property
    def differentiable(self) -> bool:
        """Whether gradients go through all choices."""
        return self._through

    def refuse_use(self, way: Way) -> None:
        """ConfigError where a choice cannot carry smashed data, or cut gradients, or `seconds` are given for these."""
        if self.follows_link and way == "down":
            raise ConfigError(
                f"seconds={self.seconds}: they follow the rate of a device's link up; for what goes down give budget "
                "or ratio"
            )
        for choice in self.choices:
            choice.refuse_use(way)

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError where a choice cannot take a full batch of this shape, or none makes it fit."""
        for choice in self.choices:
            choice.refuse_unfit(shape)
        values = torch.zeros(shape)
        room = self._room(values, rate=None)
        sizes = [self._size(number, values) for number, choice in enumerate(self.choices) if choice.fixed_size]
        if room is not None and len(sizes) == len(self.choices) and min(sizes) > room:
            part = "" if self._call.share == 1 else " for this one of several tensors"
            raise ConfigError(
                f"budget={self.budget}, ratio={self.ratio}: a full batch takes {min(sizes)} bytes even by the coarsest "
                f"choice, and {int(room)} are allowed{part}; allow more, or add a coarser codec"
            )

    def send(self, values: Tensor) -> tuple[Tensor, Payload]:
        """Returns the codes of the first choice that fits as a function of values, and its payload."""
        room, coarsest = self._room(values, self._call.rate), len(self.choices) - 1
        for number, choice in enumerate(self.choices):
            if choice.fixed_size and number < coarsest and room is not None and self._size(number, values) > room:
                continue
            codes, payload = _sent(choice, values)
            if number == coarsest or room is None or choice.fixed_size or _bytes(payload) <= room:
                return codes, _marked(self.name, number, payload)
        raise AssertionError("the coarsest choice is sent whatever its size")

    def receive(self, payload: Payload) -> tuple[Tensor, Restore]:
        """Returns the codes of a payload, and what restores values from them; WireError for what no choice sends."""
        marks = {name.partition(".")[0] for name, _ in payload.arrays}
        mark = marks.pop() if len(marks) == 1 else ""
        if payload.codec != self.name or mark not in map(str, range(len(self.choices))):
            raise WireError(
                f"codec 'adaptive' takes what one of its {len(self.choices)} choices sends; it got a payload of codec "
                f"{payload.codec[:40]!r}, choice {mark[:40]!r}"
            )
        choice = self.choices[int(mark)]
        arrays = [(name.partition(".")[2].translate(_OUTSIDE), array) for name, array in payload.arrays]
        inner = Payload(choice.name, tuple(arrays))
        if isinstance(choice, Through):
            return choice.receive(inner)
        return choice.decode(inner), lambda given: given

    def _room(self, values: Tensor, rate: float | None) -> float | None:
        """Returns how many bytes of payload fit; None: any number."""
        share = self._call.share
        rooms = [share * self.budget] if self.budget is not None else []
        rooms += [self._whole(values).nbytes / self.ratio] if self.ratio is not None else []
        rooms += [share * rate * self.seconds] if rate is not None and self.seconds is not None else []
        return min(rooms, default=None)

    def _size(self, number: int, values: Tensor) -> int:
        """Returns the bytes that a choice of a fixed size makes of values."""
        like = self._whole(values)
        key = number, like.shape, like.dtype
        if key not in self._sizes:
            if len(self._sizes) >= _MOST_SIZES:
                self._sizes.clear()
            self._sizes[key] = _bytes(self.choices[number].encode(like.new_zeros(like.shape)))
        return self._sizes[key]

    def _whole(self, values: Tensor) -> Tensor:
        """Returns values of the shape that counts: where it is row-wise those of one row, whatever the batch."""
        return values.new_zeros(1, *values.shape[1:]) if self.rowwise else values


def _refuse(choice: Codec) -> None:
    stages = getattr(choice, "stages", [choice])
    if any(isinstance(stage, Learned) for stage in stages):
        raise ConfigError(f"choices: {choice.name} is trained as a part of front and back; put it in front of adaptive")
    if any(isinstance(stage, Adaptive) for stage in stages):
        raise ConfigError("choices: adaptive is itself a choice of codecs; name those that it chooses from")
    if choice.corrects:
        raise ConfigError(f"choices: {choice.name} corrects gradients, and another choice does not; set correction=0")
    if choice.stateful:
        raise ConfigError(
            f"choices: {choice.name} remembers what it sent, and would not see the steps that another choice sends"
        )


def _sent(choice: Codec, values: Tensor) -> tuple[Tensor, Payload]:
    return choice.send(values) if isinstance(choice, Through) else (values, choice.encode(values.detach()))


def _marked(name: str, number: int, payload: Payload) -> Payload:
    return Payload(name, tuple((f"{number}.{key.translate(_INSIDE)}", array) for key, array in payload.arrays))


def _bytes(payload: Payload) -> int:
    return sum(array.nbytes for _, array in payload.arrays)
