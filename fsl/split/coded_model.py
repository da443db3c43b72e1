"""A model with a trained codec at its cut: the encoder ends the front, and the decoder begins the back."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fsl.segments.calling import Takes, call_given, takes
from fsl.segments.tensor_trees import Values

ENCODER, DECODER = "codec_encoder", "codec_decoder"  # what keys of the codec's weights begin with


def codecs_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns what of a state_dict is a trained codec's."""
    return {key: tensor for key, tensor in state.items() if key.partition(".")[0] in (ENCODER, DECODER)}


def uncoded(model: nn.Module) -> nn.Module:
    """Returns the model that was given, where it got a trained codec."""
    return model.inner if isinstance(model, CodedModel) else model


class Extended(nn.Module):
    """A module with one more child; the others, and its own tensors, keep their names.

    The two share their tables of parameters and buffers, so that a tensor that is put into one is in the other.
    """

    def __init__(self, inner: nn.Module, **more: nn.Module) -> None:
        super().__init__()
        self.__dict__["inner"] = inner  # not as a child, which would change all names
        self._parameters, self._buffers = inner._parameters, inner._buffers
        self._non_persistent_buffers_set = inner._non_persistent_buffers_set
        self._modules = {**inner._modules, **more}

    inner: nn.Module

    @property
    def training(self) -> bool:
        """Whether the module inside is in training mode."""
        return bool(self.inner.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "inner" in self.__dict__:
            self.inner.training = mode

    @property
    def takes(self) -> Takes:
        """What the forward of the module inside takes."""
        return takes(self.inner)


class EncodedFront(Extended):
    """A front whose output goes through an encoder."""

    def __init__(self, front: nn.Module, encoder: nn.Module) -> None:
        super().__init__(front, **{ENCODER: encoder})

    def forward(self, *given: Any, **named: Any) -> Any:
        """Returns the codes (B, ...)."""
        return self._modules[ENCODER](self.inner(*given, **named))  # type: ignore[misc]


class DecodedBack(Extended):
    """A back whose input comes through a decoder."""

    def __init__(self, back: nn.Module, decoder: nn.Module) -> None:
        super().__init__(back, **{DECODER: decoder})

    def forward(self, codes: Any) -> Any:
        """Returns what the back makes of decoded codes (B, ...)."""
        # A copy, since the back may begin with a layer that changes its input in place.
        return self.inner(self._modules[DECODER](codes).clone())  # type: ignore[misc]


class CodedModel(Extended):
    """A model with a codec at its cut, whose state_dict has the model's own keys and the codec's.

    `cuts`, `places`, `example`: as `divide`, which is `fsl.split.split`, takes them; it cuts the model nowhere else.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: nn.Module,
        decoder: nn.Module,
        cuts: Sequence[str],
        places: Sequence[str] | None,
        example: Values | None,
        divide: Callable[..., Iterable[Any]],
    ) -> None:
        super().__init__(model, **{ENCODER: encoder, DECODER: decoder})
        self.cuts, self.places, self.example, self.divide = tuple(cuts), places, example, divide

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the parts out, which a copy makes of its own modules."""
        return {name: value for name, value in self.__dict__.items() if name != "parts"}

    @property
    def encoder(self) -> nn.Module:
        """The codec's half on the device."""
        return self.get_submodule(ENCODER)

    @property
    def decoder(self) -> nn.Module:
        """The codec's half at the edge."""
        return self.get_submodule(DECODER)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Returns what the segments make of an input, one behind the other."""
        if "parts" not in self.__dict__:
            self.__dict__["parts"] = list(self.divide(self, self.cuts, self.example, self.places))
        front, *others = self.__dict__["parts"]
        values = front.module(*given, **named)
        for segment in others:
            values = call_given(segment.module, values)
        return values
