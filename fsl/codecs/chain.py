"""Codecs one after another: what one sends, the next makes smaller."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, Payload, Way, tells_alone
from fsl.codecs.composite import Composite
from fsl.codecs.learned import Learned
from fsl.codecs.through import Restore, Through
from fsl.errors import ConfigError, WireError
from fsl.importing.spec import Spec

_MOST = 8  # stages
_MAIN = "values"  # the array that the next stage takes
_ROOM = 1 << 20  # bytes beyond the values' own that the arrays between two stages may have: tables, places


class Chain(Composite):
    """Encodes by several codecs: each takes the array `values` of the one before, lossless ones take all arrays.

    Learned codecs come first; then those that gradients go through (`fsl.codecs.through.Through`), then others, then
    lossless ones. The cut gradient that travels is that at the codes of the last codec that gradients go through; the
    others pass it straight through. An array is named by its way: the second stage made `values/2.scale` of `values`.
    """

    name: ClassVar[str] = "chain"

    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        """`stages`: each codec as `{_target_: the import path of its class}` with its arguments."""
        if isinstance(stages, str | Mapping) or not 1 <= len(stages) <= _MOST:
            raise ConfigError(f"stages={stages!r}: give a list of 1 to {_MOST} codecs, as [c3, int8, zstd]")
        self.stages: list[Codec] = [spec_of(stage).build() for stage in stages]
        for before, after in zip(self.stages, self.stages[1:]):
            _refuse_order(before, after)
        self._parts = [stage for stage in self.stages if not isinstance(stage, Learned) or stage.coded]
        for stage in self._parts[1:]:
            if stage.corrects:
                raise ConfigError(
                    f"stages: {stage.name} corrects the gradient at what it is given, which here comes from another "
                    "codec; put it first, or leave its correction out"
                )
        self.rowwise = all(stage.rowwise for stage in self._parts)  # type: ignore[misc]
        self.stateful = any(stage.stateful for stage in self._parts)  # type: ignore[misc]
        self.follows_link = any(stage.follows_link for stage in self._parts)  # type: ignore[misc]
        self.fixed_size = all(stage.fixed_size for stage in self._parts)  # type: ignore[misc]

    @property
    def differentiable(self) -> bool:
        """Whether the first codec on the link is one that gradients go through."""
        first = self._parts[0] if self._parts else None
        return isinstance(first, Through) and first.differentiable

    @property
    def corrects(self) -> bool:
        """Whether its first codec on the link does."""
        return bool(self._parts) and self._parts[0].corrects

    def correction(self, values: Tensor, decoded: Tensor) -> Tensor:
        """Returns the correction of its first codec."""
        return self._parts[0].correction(values, decoded)

    @property
    def movable(self) -> bool:
        """Whether its session can move to another edge."""
        return all(stage.movable for stage in self._parts)

    def refuse_use(self, way: Way) -> None:
        """ConfigError where one of its codecs cannot carry smashed data, or cut gradients."""
        for stage in self.stages:
            stage.refuse_use(way)

    def remark_on(self, values: Tensor) -> str:
        """Returns what its first codec says of values at the cut; those behind it get others."""
        return self.stages[0].remark_on(values)

    def refuse_unfit(self, shape: torch.Size) -> None:
        """ConfigError where a stage cannot take what comes to it of a full batch of this shape."""
        values = torch.zeros(shape)
        for stage in self._parts:
            if stage.lossless or not values.is_floating_point():
                return
            stage.refuse_unfit(values.shape)
            if stage.chains:
                values = dict(stage.encode(values).arrays)[_MAIN]

    def _room_of(self, part: int) -> int:
        """Returns room for tables and places behind the first stage."""
        return _ROOM if part else 0

    def state(self) -> dict[str, Tensor]:
        """Returns the state of each stage, behind its number."""
        return {f"{k}.{name}": t for k, stage in enumerate(self._parts) for name, t in stage.state().items()}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; WireError where it is not of these stages."""
        found: list[dict[str, Tensor]] = [{} for _ in self._parts]
        for key, tensor in state.items():
            number, _, name = key.partition(".")
            if not number.isdecimal() or int(number) >= len(found):
                raise WireError(f"codec 'chain' has no stage for the state {key[:40]!r}")
            found[int(number)][name] = tensor
        for stage, own in zip(self._parts, found):
            if own or stage.stateful:
                stage.resume(own)

    def send(self, values: Tensor) -> tuple[Tensor, Payload]:
        """Returns the codes as a function of values, and the payload of all stages."""
        codes, main = values, _MAIN
        arrays = {main: values}
        for number, stage in enumerate(self._parts, 1):
            for name in [name for name in arrays if name == main or (stage.lossless and not tells_alone(name))]:
                if isinstance(stage, Through):
                    codes, payload = stage.send(codes)
                else:
                    payload = stage.encode(_encodable(arrays[name].detach(), stage))
                arrays = _replaced(arrays, name, {f"{name}/{number}.{part}": a for part, a in payload.arrays})
            main = f"{main}/{number}.{_MAIN}"
        return codes, Payload(self.name, tuple(arrays.items()))

    def receive(self, payload: Payload) -> tuple[Tensor, Restore]:
        """Returns the codes of a payload, and what restores values from them; WireError for what no chain sends."""
        if payload.codec != self.name:
            raise WireError(f"codec 'chain' takes what a chain sends; it got a payload of codec {payload.codec[:40]!r}")
        arrays, restores = dict(payload.arrays), list[Restore]()
        codes: Tensor | None = None
        for number in range(len(self._parts), 0, -1):
            stage, parts = self._parts[number - 1], dict[str, list[tuple[str, Tensor]]]()
            for key in [key for key in arrays if f"/{number}." in key]:
                name, _, part = key.rpartition(f"/{number}.")
                parts.setdefault(name, []).append((part, arrays.pop(key)))
            if not parts or (len(parts) > 1 and not stage.lossless):
                raise WireError(f"codec 'chain' got {len(parts)} payloads of its stage {number}, {stage.name}")
            for name, some in parts.items():
                one = Payload(stage.name, tuple(some))
                if isinstance(stage, Through):
                    came, restore = stage.receive(one)
                    codes = came if codes is None else codes
                    restores.append(restore)
                    arrays[name] = came
                else:
                    arrays[name] = stage.decode(one)
        if list(arrays) != [_MAIN] or not arrays[_MAIN].is_floating_point():
            raise WireError("codec 'chain' got arrays that no chain of these stages sends")

        def restored(given: Tensor) -> Tensor:
            for restore in restores:
                given = restore(given)
            return given

        return arrays[_MAIN] if codes is None else codes, restored


def spec_of(stage: Mapping[str, Any]) -> Spec:
    """Returns the description of a stage that is given as a mapping with `_target_`; ConfigError for another thing."""
    arguments = dict(stage) if isinstance(stage, Mapping) else {}
    target = arguments.pop("_target_", None)
    if not isinstance(target, str):
        raise ConfigError(f"stages: {stage!r} names no class; give {{_target_: an import path, argument: ...}}")
    return Spec(target, arguments)


def _refuse_order(before: Codec, after: Codec) -> None:
    if not before.chains or not (after.chains or isinstance(before, Learned)):
        alone, other = (after, before) if before.chains else (before, after)
        raise ConfigError(
            f"stages: {alone.name} takes whole codecs, and {other.name} beside it in a chain is none of them; put "
            f"{other.name} into each of its choices"
        )
    if (before.lossless or (isinstance(before, Learned) and before.coded)) and not after.lossless:
        raise ConfigError(
            f"stages: {after.name} comes behind {before.name}, whose bytes are no values; put it in front"
        )
    if isinstance(after, Learned) and not isinstance(before, Learned):
        raise ConfigError(
            f"stages: {after.name} comes behind {before.name}; it is trained as a part of front and back, so put it "
            "first"
        )
    if isinstance(after, Through) and not isinstance(before, Through | Learned):
        raise ConfigError(
            f"stages: {after.name} comes behind {before.name}, through which no gradient goes; put {after.name} in "
            "front of it"
        )


def _encodable(array: Tensor, stage: Codec) -> Tensor:
    if not stage.lossless and not array.is_floating_point():
        raise ConfigError(
            f"stages: {stage.name} takes floating-point values, and got {str(array.dtype).removeprefix('torch.')} of "
            "the codec in front of it; only lossless codecs, as zstd, can come there"
        )
    return array


def _replaced(arrays: Mapping[str, Tensor], name: str, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns arrays with that of this name replaced, in its place, by what was made of it."""
    return {k: a for old, kept in arrays.items() for k, a in (made.items() if old == name else [(old, kept)])}
