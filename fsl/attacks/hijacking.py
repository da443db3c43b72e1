"""Feature-space hijacking: a malicious edge that teaches fronts what it can invert."""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl import seeds
from fsl.attacks.attack import Attack, Finding, Target, above_zero, at_least_one, reconstruction
from fsl.attacks.networks import Critic, Decoder, Encoder, drawn_from
from fsl.codecs import Identity
from fsl.codecs.codec import CodecCall
from fsl.data import Examples
from fsl.errors import ConfigError, HijackedError
from fsl.files import load_tensors, save_tensors
from fsl.importing.import_paths import path_of
from fsl.importing.spec import Spec
from fsl.privacy.private_cut import clipped
from fsl.segments.optimizer import dump_optimizer, load_optimizer
from fsl.segments.states import State
from fsl.segments.sums import WeightedSum
from fsl.trainers import EdgeBench, EdgeTrainer
from fsl.trainers.uploads import Reply, Upload

_PUBLIC = "public.safetensors"
_NETWORKS = "networks"


class Hijacker(EdgeTrainer):
    """An edge that trains nothing it was asked to: its cut gradients make smashed data look like its own encoder's.

    Pasquini, Ateniese & Bernaschi 2021, "Unleashing the Tiger: Inference Attacks on Split Learning", Section 3, with
    the Wasserstein critic of the released code. What it has learnt lies in `folder` from round to round; that is also
    where its own data are. `turns`: steps of its own networks for each upload. `lr`: of encoder and decoder.
    `penalty`: of a critic's slope that is not 1. `scale`: what the cut gradients are multiplied by.

    It knows what devices do at the cut (`clip`, noise of `std`, the codec of `coded` and its arguments): its encoder's
    rows are clipped and noised, and go through the codec, before the critic sees them; gradients go straight through
    the codec. `sign`: fronts end in signs, and so does its encoder: a front cannot imitate other values. After round
    `still` its cut gradients are zero, so that fronts stand still and each row is seen `sights` times through the same
    front; the decoder learns from as little noise as their mean has.
    """

    def __init__(
        self,
        folder: str,
        turns: int = 1,
        lr: float = 1e-5,
        critic_lr: float = 1e-4,
        penalty: float = 500.0,
        scale: float = 1.0,
        clip: float | None = None,
        std: float = 0.0,
        sights: int = 1,
        still: int | None = None,
        sign: bool = False,
        coded: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ):
        self.folder, self.turns, self.scale = Path(folder), turns, scale
        self.lr, self.critic_lr, self.penalty = lr, critic_lr, penalty
        self.clip, self.std, self.sights, self.still = clip, std, sights, still
        self.sign, self.codec = sign, None if coded is None else Spec(coded, arguments)
        self._networks: nn.ModuleDict | None = None

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Nothing of the back is used."""
        super().begin(bench, edge, back)
        self.examples = 0
        known = load_tensors(self.folder / _PUBLIC)
        self.inputs, self.shown = known["inputs"], known["shown"]

    def open(self, device: int, weight: float) -> None:
        """A device comes in."""

    def close(self, device: int) -> None:
        """A device leaves."""

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Cut gradients of the critic's loss in the place of the task's."""
        return [self._answer(message) for message in messages]

    def result(self) -> WeightedSum:
        """Save the adversary's networks, and return the back unchanged."""
        if self._networks is not None:
            parts = {_NETWORKS: self._networks.state_dict()}
            parts |= {name: dump_optimizer(optimizer) for name, optimizer in self._optimizers.items()}
            named = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
            save_tensors(self._path, named, durable=False)
        total = WeightedSum(self.bench.back.layout)
        total.add(self.back, max(self.examples, 1))
        return total

    @property
    def _path(self) -> Path:
        return self.folder / f"edge-{self.edge}.safetensors"

    def _answer(self, upload: Upload) -> Reply:
        if not isinstance(upload.smashed, Tensor):
            raise ConfigError("attacks on several tensors at a cut are not built; cut where one crosses")
        networks = self._networks or self._ready(upload.smashed)
        stream = seeds.Stream(self.bench.seed, "hijack", device=upload.device, round=self.bench.round)
        draw = torch.Generator().manual_seed(stream.at(upload.step))
        smashed = upload.smashed.detach()
        self.examples += len(smashed)
        if self.still is not None and self.bench.round > self.still:
            return Reply(upload.device, upload.step, torch.zeros_like(smashed), torch.zeros(()))
        for _ in range(self.turns):
            self._learn(networks, smashed, draw)
        leaf = smashed.clone().requires_grad_()
        loss = -networks["critic"](leaf).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return Reply(upload.device, upload.step, self.scale * gradient, loss.detach())

    def _learn(self, networks: nn.ModuleDict, smashed: Tensor, draw: torch.Generator) -> None:
        # Two at least, over which the encoder can normalise.
        rows = torch.randint(len(self.shown), (max(len(smashed), 2),), generator=draw)
        encoded = networks["encoder"](self.inputs[rows])
        if self.clip is not None:
            encoded = clipped(encoded, self.clip)
        mean, encoded = self._sent(encoded, draw)
        loss = F.mse_loss(networks["decoder"](mean), self.shown[rows])
        self._own.zero_grad()
        loss.backward()
        self._own.step()
        encoded = encoded[: len(smashed)]
        mix = torch.rand((len(smashed), *[1] * (smashed.dim() - 1)), generator=draw)
        between = (mix * encoded + (1 - mix) * smashed).requires_grad_()
        critic = networks["critic"]
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        loss = critic(smashed).mean() - critic(encoded).mean() + self.penalty * penalty
        self._critics.zero_grad()
        loss.backward()
        self._critics.step()

    def _sent(self, encoded: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the mean of so many sights of the encoder's rows, which gradients go through, and one sight."""

        def noise() -> Tensor:
            return self.std * torch.randn(encoded.shape, generator=draw) if self.std else torch.zeros(())

        if self.codec is None:
            drawn = noise()
            return encoded + drawn / math.sqrt(self.sights), encoded.detach() + drawn
        rows, seen = encoded.detach(), []
        for _ in range(self.sights if self.std else 1):
            # Both ends of one session draw the same numbers in the same step.
            call = CodecCall(seeds.Stream(int(torch.randint(2**62, (), generator=draw)), "hijack"))
            device, edge = (self.codec.build().at(call) for _ in range(2))
            seen.append(edge.decode(device.encode(rows + noise())))
        return encoded + (torch.stack(seen).mean(0) - rows), seen[0]

    def _ready(self, smashed: Tensor) -> nn.ModuleDict:
        shape = tuple(smashed.shape[1:])
        with drawn_from(self.bench.seed, "hijack", f"edge-{self.edge}"):
            positive = _positive(smashed, self.std)
            networks = adversary(tuple(self.inputs.shape[1:]), shape, positive, self.sign)
        own = [*networks["encoder"].parameters(), *networks["decoder"].parameters()]
        self._own = torch.optim.Adam(own, lr=self.lr)
        self._critics = torch.optim.Adam(networks["critic"].parameters(), lr=self.critic_lr)
        self._optimizers = {"own": self._own, "critics": self._critics}
        if self._path.exists():
            kept = load_tensors(self._path)
            networks.load_state_dict(_part(kept, _NETWORKS))
            for name, optimizer in self._optimizers.items():
                load_optimizer(optimizer, _part(kept, name))
        self._networks = networks
        return networks


def _positive(smashed: Tensor, std: float) -> bool:
    """Whether these may be of a ReLU before noise of `std`: no more of them is below zero than the noise explains."""
    return bool(smashed.clamp(max=0).square().mean() <= 1.05 * std**2 / 2)


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """What an edge put away of its networks, or of one of its optimizers."""
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}


def adversary(inputs: Sequence[int], smashed: Sequence[int], positive: bool, sign: bool = False) -> nn.ModuleDict:
    """The three networks of a hijacking edge, for inputs and smashed data of these shapes (without the batch).

    Convolutions even for small pictures: what a front of convolutions cannot imitate would never be decoded.
    """
    return nn.ModuleDict(
        {
            "encoder": Encoder(inputs, smashed, positive, sign),
            "decoder": Decoder(smashed, inputs, large=0),
            "critic": Critic(smashed),
        }
    )


@dataclass(frozen=True)
class FSHA(Attack):
    """An edge that hijacks training from the first round on: the run is trained again with such edges.

    What devices send at the end is decoded. A device that watches its cut gradients (privacy=detector) stops the run:
    `stopped` is then 1, and what is decoded is what came through until then. `rounds`: null for the run's own.

    `lr`, `critic_lr`, `penalty` and `turns=1` in 10,000 iterations are those of the released code (for pictures of
    28 to 64 pixels a side, with devices at Adam 1e-5); our defaults reach further in the few steps of a run here.
    `still`: where there is noise, fronts stand still in the last so many rounds, and the mean of a row's sights in them
    is decoded (null: a third of the rounds).
    """

    rounds: int | None = None
    turns: int = 3
    lr: float = 0.001
    critic_lr: float = 0.001
    penalty: float = 10.0
    scale: float = 1.0
    samples: int = 256
    still: int | None = None

    adversary: ClassVar[str] = "edge"

    def __post_init__(self) -> None:
        at_least_one(turns=self.turns, samples=self.samples, rounds=self.rounds, still=self.still)
        above_zero(lr=self.lr, critic_lr=self.critic_lr, penalty=self.penalty, scale=self.scale)

    def run(self, target: Target) -> Finding:
        """Train with hijacking edges, then decode the device's smashed data."""
        if not target.answered:
            raise ConfigError("attack=fsha: devices of this run await no cut gradient, so nobody can hijack them")
        if target.privacy is not None and (target.privacy.dp_sgd is not None or target.privacy.client is not None):
            raise ConfigError("attack=fsha: fronts that are trained privately are not hijacked; use attack=inversion")
        folder = target.folder / "fsha"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_public(folder, target)
        rounds = self.rounds or target.total_rounds
        still = min(rounds // 3 if self.still is None else self.still, rounds - 1) if target.noise_std else 0
        sights = max(still * target.passes, 1)
        options = {
            "folder": str(folder.absolute()),
            "turns": self.turns,
            "lr": self.lr,
            "critic_lr": self.critic_lr,
            "penalty": self.penalty,
            "scale": self.scale,
            "clip": target.clip,
            "std": target.noise_std,
            "sights": sights,
            "still": rounds - still if still else None,
            "sign": target.sign,
        }
        if target.up.locate() is not Identity:
            options |= {"coded": target.up.target, "arguments": dict(target.up.kwargs)}
        edges = Spec(path_of(Hijacker), options)
        front, remark = target.blank(), ""
        try:
            front.load_state_dict(target.rerun(edges, folder / "run", self.rounds))
        except HijackedError as error:
            remark = str(error)
        front.eval()
        victims, _ = target.victims(self.samples)
        seen = [target.smashed(victims, sight, front) for sight in range(sights)]
        smashed = torch.stack(seen).mean(0)
        networks = adversary(
            victims.shape[1:], smashed.shape[1:], False, target.sign
        )  # its decoder is all that is used
        edge = folder / f"edge-{target.device % target.edges}.safetensors"
        if edge.exists():
            networks.load_state_dict(_part(load_tensors(edge), _NETWORKS))
        networks.eval()
        with torch.no_grad():
            found = reconstruction(target, networks["decoder"](smashed), victims)
        return Finding(
            {**found.figures, "stopped": float(bool(remark)), "sights": sights},
            (*found.headline, "stopped"),
            found.pictures,
            remark,
        )


def save_public(folder: Path, target: Target) -> None:
    """What the adversary knows, for edges that are at work elsewhere."""
    known: Examples = target.known
    inputs, _ = known.batch(torch.arange(len(known)))
    tensors: Mapping[str, Tensor] = {"inputs": inputs, "shown": target.pixels.shown(inputs).clamp(0, 1)}
    save_tensors(folder / _PUBLIC, dict(tensors), durable=False)
