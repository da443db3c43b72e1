"""What a run says of compressed activations before its first round."""

import logging

import torch
from torch import nn

from fsl.faults import said
from fsl.models.vertical_model import FRONT, PartyFront
from fsl.round.workload import Worker
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.precision import computing
from fsl.segments.tensor_trees import Values, passed, received
from fsl.settings.federation_settings import CloudStrategy, Federation

log = logging.getLogger(__name__)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._BatchNorm)


def check_memory(federation: Federation, strategy: CloudStrategy, worker: Worker) -> None:
    """A line where devices have no layer whose inputs `federation.memory` would compress."""
    memory = federation.memory
    if memory is None:
        return
    cut = strategy.trainer(1) is not None
    if cut and any(isinstance(m, _LAYERS) for n in ("tail", "head") for m in _modules(worker, n)):
        return
    saver = memory.saver([p for segment in worker.segments.values() for p in segment.module.parameters()])
    chain = [name for name in worker.segments if name == "front" or name.startswith(FRONT)] if cut else [*worker.chain]
    try:
        with torch.random.fork_rng(devices=[]), saver.saving(), torch.enable_grad():
            blank = worker.workload.data.blank(2).to(worker.accelerator)
            values: Values = blank
            for name in chain:
                module = worker.segments[name].module
                with evaluating(module), computing(federation.training.precision, worker.accelerator):
                    if isinstance(module, PartyFront):
                        received(module(passed(blank)[module.party]))
                    else:
                        values = received(call(module, values))
    except Exception as error:  # a user's model: if it is at fault, training says so, with its place
        reason = said(error)
        log.warning(
            "memory=error_bounded is not tried before the first round: no blank input goes through (%s)", reason
        )
        return
    if not saver.layers:
        layers = "convolution or batch norm" if memory.norms else "convolution"
        log.warning("memory=error_bounded changes nothing: devices' part of the model has no %s", layers)


def _modules(worker: Worker, segment: str) -> list[nn.Module]:
    return [*worker.segments[segment].module.modules()] if segment in worker.segments else []
