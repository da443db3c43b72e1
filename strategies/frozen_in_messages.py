"""What messages of a real federation say of frozen parameters; in a simulation nodes copy the run's model."""

from flwr.app import ArrayRecord

from fsl.flower.frozen_records import frozen_array, with_frozen_arrays
from fsl.settings.federation_settings import Federation


def digests(federation: Federation) -> dict[str, str]:
    """Returns digests of frozen parameters by segment, which nodes compare with their own."""
    if federation.placement is None:
        return {}
    return {name: layout.frozen.digest for name, layout in federation.layouts.items()}


def with_replaced(federation: Federation, arrays: ArrayRecord) -> ArrayRecord:
    """Add frozen parameters for nodes that build the model themselves, where the run began with others.

    For messages without a placement: any worker of Flower's engine may answer for a node, so every message has them.
    """
    if federation.placement is None:
        return arrays
    frozen = {name: layout.frozen for name, layout in federation.layouts.items()}
    return with_frozen_arrays(arrays, {name: frozen_array(one) for name, one in frozen.items() if one.replaced})
