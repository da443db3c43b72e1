"""`fsl-serve profile`: measures the model of a finished run on this machine for who asks, until somebody ends it."""

import time
from collections.abc import Sequence

import torch
from fsl.simulations.endings import tell
from fsl.simulations.serving.serve_options import ServeOptions
from fsl.simulations.serving.serve_tokens import certificates_of_edge, operator_keys
from fsl.simulations.serving.served_run import ALL, MODEL_OPTIONS, served_run

from fsl.inference.serving.profile_service import ProfileService
from fsl.segments.tensor_trees import Values

PROFILE_OPTIONS = (
    *MODEL_OPTIONS,
    *("address", "cert", "cert-key", "client-ca", "token-key", "insecure", "threads", "power"),
)
_LOOK = 0.5  # seconds between two looks for a signal


def serve_profile(arguments: Sequence[str]) -> None:
    """Measure for who asks until KeyboardInterrupt."""
    options = ServeOptions(arguments, PROFILE_OPTIONS)
    certificates, keys = certificates_of_edge(options), operator_keys(options)
    run, points = served_run(options, usual=[ALL])
    examples = run.data.train.of_one_length()

    def inputs(batch: int) -> Values:
        return examples.batch(torch.arange(batch) % len(examples))[0]

    with ProfileService(
        points,
        inputs,
        listen=options.text("address"),
        certificates=certificates,
        token_keys=keys,
        threads=options.whole("threads", 1, 1) or 1,
        power_active_watts=options.number("power", None),
    ) as service:
        name, digest = type(points.model).__name__, points.digest()[:12]
        tell(f"measures {name} ({digest}) at {service.address} for who asks; Ctrl-C ends it")
        while True:
            time.sleep(_LOOK)
