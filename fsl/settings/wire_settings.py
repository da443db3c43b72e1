"""What smashed data and cut gradients pass through between devices and edges."""

from dataclasses import dataclass
from typing import TypedDict

from fsl.codecs.codec import Way
from fsl.codecs.codec_choice import CodecChoice, codec_spec
from fsl.importing.spec import Spec
from fsl.settings.option_groups import OptionGroup

IDENTITY = Spec("fsl.codecs.Identity")


class WireOptions(TypedDict, total=False):
    """The fields of `Wire` as keywords."""

    up: CodecChoice
    down: CodecChoice


@dataclass(frozen=True, kw_only=True)
class Wire(OptionGroup):
    """The codecs of a run: a class, its import path, or an object, whose arguments say how each session builds its own.

    `up=TopK(k=0.1)` has every session build a `TopK(k=0.1)`. ConfigError for what is no codec.
    """

    up: CodecChoice = "fsl.codecs.Identity"
    """Codec of smashed data: a name ("int8"), a class, its import path, or an object such as `TopK(k=0.1)`."""

    down: CodecChoice = "fsl.codecs.Identity"
    """Codec of cut gradients, given like `up`."""

    def __post_init__(self) -> None:
        for name in ("up", "down"):
            object.__setattr__(self, name, codec_spec(f"codec.{name}", getattr(self, name)))

    @property
    def up_spec(self) -> Spec:
        """The codec of smashed data, by import path and arguments."""
        assert isinstance(self.up, Spec)  # since it was made
        return self.up

    @property
    def down_spec(self) -> Spec:
        """The codec of cut gradients, by import path and arguments."""
        assert isinstance(self.down, Spec)  # since it was made
        return self.down

    @property
    def ways(self) -> dict[Way, Spec]:
        """Both codecs, by the way that they go: `up` and `down`."""
        return {"up": self.up_spec, "down": self.down_spec}
