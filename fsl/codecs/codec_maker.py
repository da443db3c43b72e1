"""Builds the codecs of sessions from a plan's description."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fsl.codecs.codec import Codec
from fsl.errors import ConfigError, WireError
from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec

CANNOT_MOVE = (
    "it keeps state in a session, and has no `state` and `resume` by which that could follow a device to another edge "
    "in the middle of a round; give it these, use mobility=none, or a codec without state"
)
CANNOT_MOVE_TAILS = (
    "it keeps state in a session, which is built to follow a device to another edge where one cut is; with a tail use "
    "mobility=none, or a codec without state"
)


def codec_maker(spec: Spec, allowed: Iterable[str] = ALLOWED) -> Callable[[], Codec]:
    """Returns a function that builds a described codec for a session, only from classes of the allowed packages.

    WireError for a class that is not allowed, or for arguments that it does not take; ConfigError for what is no Codec.
    """
    kind = spec.locate(allowed)
    if not issubclass(kind, Codec):
        raise ConfigError(f"{spec.target} is not a Codec")
    for inner in named_in(spec.kwargs):  # the constructor of such a codec builds them
        codec_maker(inner, allowed)

    def make() -> Codec:
        try:
            codec: Codec = kind(**spec.kwargs)
        except TypeError as error:
            raise WireError(
                f"codec {spec.text} cannot be built: {error}; both ends need the same version of it"
            ) from None
        return codec

    return make


def named_in(value: Any) -> Iterator[Spec]:
    """Yields the codecs that a codec's arguments name, as the stages of a chain."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield Spec(str(value["_target_"]), {name: item for name, item in value.items() if name != "_target_"})
            return
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from named_in(item)


def codec_of(spec: Spec) -> Codec:
    """A codec as described by whoever is trusted: the run's own configuration."""
    codec: Codec = spec.build()
    return codec
