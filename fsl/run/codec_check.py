"""What is refused of a run's codecs before its first round."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor

from fsl.codecs.codec import Codec, CodecCall, Way
from fsl.codecs.codec_maker import CANNOT_MOVE, CANNOT_MOVE_TAILS, codec_maker, codec_of
from fsl.codecs.through import Through
from fsl.errors import ConfigError, FslError, WireError
from fsl.faults import said
from fsl.importing.spec import Spec
from fsl.models.vertical_model import FRONT, PartyFront
from fsl.round.workload import Worker
from fsl.run.codec_trial import try_codec
from fsl.segments.calling import call
from fsl.segments.precision import Precision, computing
from fsl.segments.tensor_trees import Values, activations_of, passed, received
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.settings.wire_settings import IDENTITY
from fsl.split.coding import learned_in
from fsl.trainers import EdgeTrainer

log = logging.getLogger(__name__)
_ROWS = 4  # of a trial


def check_codecs(federation: Federation, strategy: CloudStrategy, worker: Worker) -> None:
    """ConfigError for a codec that breaks on what the cut gives; a line for one that nothing passes through."""
    spec = strategy.trainer(1)
    trainer: EdgeTrainer | None = None if spec is None else spec.build()
    used = {way: codec for way, codec in federation.wire.ways.items() if codec != IDENTITY}
    for way, codec in list(used.items()):
        what, name = f"codec.{way}={codec.text}", type(strategy).__name__
        if trainer is None and learned_in(codec_of(codec)):
            log.warning("%s: %s trains it as a part of the whole model; no bytes are saved", what, name)
            del used[way]
        elif trainer is None:
            log.warning("%s changes nothing: %s trains the whole model on the devices, without a cut", what, name)
            del used[way]
        elif way == "down" and not trainer.answers:
            log.warning("%s changes nothing: with %s no cut gradients go down to devices", what, name)
            del used[way]
        else:
            _refuse(what, way, codec_of(codec), federation, tails="tail" in worker.chain)
    fronts = [name for name in worker.segments if name == "front" or name.startswith(FRONT)]
    made = [_smashed(worker, front, federation.training.precision) for front in fronts] if used else []
    for (way, codec), smashed in product(used.items(), made):
        what = f"codec.{way}={codec.text}"
        try:
            make = codec_maker(codec, worker.workload.allowed)
        except WireError as error:
            raise ConfigError(f"{what}: {error}; name a Codec") from None
        activations = () if smashed is None else activations_of(smashed)
        poisson = federation.privacy is not None and federation.privacy.poisson
        up = used.get("up", IDENTITY)
        whole = sum(activation.nbytes for activation in activations)
        for activation in activations:
            if way == "up" and (remark := make().remark_on(activation)):
                log.warning("%s: %s", what, remark)
            with _named(what):
                full = _values(federation.training.batch_size, activation)
                call = CodecCall(share=activation.nbytes / whole if whole else 1.0)
                make().at(call).refuse_unfit((full if way == "up" else _gradient(full, up)).shape)
            for rows in (_ROWS, *([] if worker.skip_single else [1]), *([0] if poisson else [])):
                values = _values(rows, activation)
                try_codec(what, make, values if way == "up" else _gradient(values, up))


def _refuse(what: str, way: Way, codec: Codec, federation: Federation, tails: bool) -> None:
    """ConfigError for a codec that cannot carry what goes this way, or whose state cannot follow a device."""
    ways: tuple[Way, ...] = ("up", "down")
    with _named(what):
        for use in ways if tails else (way,):  # before a tail outputs go down, and their gradient goes up
            codec.refuse_use(use)
    if codec.follows_link and federation.costs is None:
        raise ConfigError(
            f"{what}: it follows the rates of links, and rounds of this run are not priced, so that nothing tells "
            "them; give it a budget or a ratio"
        )
    if federation.mobility is not None and not codec.movable:
        raise ConfigError(f"{what}: {CANNOT_MOVE}")
    if federation.mobility is not None and codec.stateful and tails:
        raise ConfigError(f"{what}: {CANNOT_MOVE_TAILS}")


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None


def _gradient(values: Tensor, up: Spec) -> Tensor:
    """Returns values of the shape of the gradient that goes down: that of values, or of the codes made of them."""
    codec = codec_of(up)
    return codec.send(values)[0] if isinstance(codec, Through) and codec.differentiable else values


def _smashed(worker: Worker, name: str, precision: Precision) -> Values | None:
    """What a front gives for two blank inputs; None, with a warning, where it does not take them."""
    data, front = worker.workload.data, worker.segments[name].module
    training = front.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), computing(precision, worker.accelerator):
            blank = data.blank(2).to(worker.accelerator)
            if isinstance(front, PartyFront):
                return received(front.eval()(passed(blank)[front.party]))
            return received(call(front.eval(), blank))
    except FslError:
        raise
    except Exception as error:  # a user's model: if it is at fault, training says so, with its place
        reason = said(error)
        log.warning("codecs are not tried before the first round: the front does not take a blank input (%s)", reason)
        return None
    finally:
        front.train(training)


def _values(rows: int, like: Tensor) -> Tensor:
    """Values of both signs as the cut gives them, so many rows."""
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(rows, *like.shape[1:], generator=generator)
    return values.to(like.dtype).to(like.device)
