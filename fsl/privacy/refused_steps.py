"""Which ways to step have no valid account under privacy."""

from fsl.errors import ConfigError
from fsl.memory import ErrorBoundedMemory
from fsl.privacy.settings import Privacy
from fsl.segments.step_control import StepControl


def refuse_control(control: StepControl, privacy: Privacy | None) -> None:
    """Raise ConfigError for what privacy cannot be combined with.

    A clip of a segment's gradient and a rate by step go well with DP-SGD: they are functions of a gradient that has its
    noise already, and of public numbers.
    """
    if privacy is None:
        return
    if control.accumulate > 1 and privacy.dp_sgd is not None:
        raise ConfigError(
            f"accumulate={control.accumulate} with privacy.dp_sgd: each batch would be released with noise of its own, "
            "which is more noise than one larger batch needs; give a larger batch_size, and accumulate=1"
        )
    if control.precision != "float32":
        raise ConfigError(
            f"precision={control.precision} with privacy: a clip in fewer digits bounds nothing exactly, and accounts "
            "go by exact bounds; use precision=float32"
        )


def refuse_memory(memory: ErrorBoundedMemory | None, privacy: Privacy | None) -> None:
    """Raise ConfigError for compressed activations beside DP-SGD, whose gradients by sample keep their own."""
    if memory is not None and privacy is not None and privacy.dp_sgd is not None:
        raise ConfigError(
            "memory=error_bounded with privacy.dp_sgd: gradients by sample come from hooks that keep each layer's "
            "input themselves, exactly, so that nothing would get smaller; use memory=none"
        )
