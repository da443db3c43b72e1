"""What an adversary can learn of one device: the releases that it sees, and the epsilon that follows.

A figure "epsilon = 3" says nothing before it says against whom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fsl.privacy.epsilon import Gaussian, accountant_used, combined, epsilon
from fsl.privacy.settings import Privacy

ADVERSARIES: Mapping[str, str] = {
    "model": "who gets the released model",
    "devices": "the other devices, by what they are sent in training",
    "edge": "an edge server, by what it sees in training",
    "cloud": "the cloud, by what it sees in training",
    "cloud+edge": "cloud and edge servers together",
    "network": "who listens on the network",
}

REPLACED = "one sample replaced by another"
ZEROED = "one sample's contribution zeroed out (the number of samples is public)"
DEVICE = "one device's whole update zeroed out (the number of devices is public)"


@dataclass(frozen=True)
class Setting:
    """The facts of a run that its claims follow from: mechanisms, fronts, batches, and who draws noise.

    `spread`: the devices whose fronts one sample moves in a step (SGLR's averaged gradients). `secure`: the noise is
    of the machines' secure generators. `encrypted`: the wire is. `fixed`: the segments in which nothing is trained.
    `fitted`: why a fixed front may know these data all the same, in words; empty where nothing speaks for it. `tail`:
    the model's last segment runs on devices, so that labels stay there.
    """

    privacy: Privacy
    fronts: str
    edge: bool  # False: devices train the whole model
    batch_size: int
    passes: int  # over a device's samples in a round
    spread: int = 1
    secure: bool = False
    encrypted: bool = False
    fixed: tuple[str, ...] = ()
    fitted: str = ""
    tail: bool = False

    @property
    def local(self) -> bool:
        """Whether rows and labels reach the edge with noise."""
        return self.edge and self.privacy.cut is not None and self.privacy.labels is not None

    @property
    def segments(self) -> list[str]:
        """The segments of the model."""
        return ["front", "back", *(["tail"] if self.tail else [])]


@dataclass(frozen=True)
class ReleaseCounts:
    """What of one device was released so far."""

    samples: int
    rounds: int = 0
    steps: int = 0
    passes: int = 0  # releases of each sample, where batches are fixed

    def more(self, steps: int, passes: int, rounds: int = 1) -> "ReleaseCounts":
        """Returns these counts plus those of another round."""
        return replace(self, rounds=self.rounds + rounds, steps=self.steps + steps, passes=self.passes + passes)

    def within(self, other: "ReleaseCounts") -> bool:
        """Whether another released of the same device has all of this one's releases."""
        return self.rounds <= other.rounds and self.steps <= other.steps and self.passes <= other.passes


@dataclass(frozen=True)
class Claim:
    """What one adversary can learn of one device's samples: (epsilon, delta), or unbounded and why.

    `releases`: what it sees, by which mechanism. `epsilon` is None where it is unbounded.
    """

    epsilon: float | None
    delta: float
    neighbours: str
    composition: str
    releases: tuple[str, ...]
    unbounded: str = ""


@dataclass
class _Account:
    """A claim in the making."""

    setting: Setting
    released: ReleaseCounts
    history: list[Gaussian] = field(default_factory=list)
    pure: float = 0.0  # epsilon of mechanisms that need no delta
    releases: list[str] = field(default_factory=list)
    unbounded: list[str] = field(default_factory=list)
    neighbours: str = ZEROED

    def claim(self) -> Claim:
        privacy = self.setting.privacy
        spent = None
        if not self.unbounded:
            spent = epsilon(tuple(self.history), privacy.delta, privacy.accountant) + self.pure
            if math.isinf(spent):
                spent = None
                bare = any(g.noise_multiplier == 0 for g in self.history if g.releases)
                self.unbounded.append("the noise multiplier is 0" if bare else "so little noise that no sum bounds it")
        used = accountant_used(tuple(self.history), privacy.delta, privacy.accountant)
        how = [f"{used.upper()} accountant"] if self.history else []
        how += ["pure epsilon added"] if self.pure else []
        return Claim(
            spent,
            privacy.delta if self.history else 0.0,
            self.neighbours,
            ", ".join(how) or "nothing to compose",
            tuple(self.releases),
            "; ".join(self.unbounded),
        )

    def gradients(self, segments: Sequence[str], *, sampled: bool = True) -> None:
        """Gradients of these segments; `sampled`: who sees them does not see which samples took part.

        A front that is never sent counts like one that is: what is seen later depends on what it learnt.
        """
        setting, released = self.setting, self.released
        segments = [name for name in segments if name not in setting.fixed]
        if not segments:
            self.releases.append("no gradients: nothing is trained")
            return
        found = [(name, setting.privacy.segment(name, setting.batch_size)) for name in segments]
        bare = [name for name, segment in found if segment is None]
        if bare:
            self.unbounded.append(f"the {' and the '.join(bare)} learnt from samples as they are, without noise")
            return
        dp_sgd = setting.privacy.dp_sgd
        assert dp_sgd is not None
        if dp_sgd.clipping == "joint":
            multiplier = float(dp_sgd.noise_multiplier or 0)
        else:
            spread = setting.spread if sampled else 1  # who sees the rows sees what is averaged
            multiplier = combined([_effective(s.noise_multiplier, name, spread) for name, s in found if s is not None])
        if self.neighbours == REPLACED:
            multiplier /= 2  # one contribution leaves, another comes
        elif setting.spread > 1:
            self.neighbours = REPLACED
        what = f"gradients of the {' and the '.join(segments)}: DP-SGD, noise multiplier {multiplier:.4g}"
        if setting.privacy.poisson:
            rate = setting.batch_size / released.samples if sampled else 1.0
            self.history.append(Gaussian(multiplier, rate, released.steps))
            seen = f"Poisson rate {rate:.4g}" if sampled else "not amplified: who took part is seen"
            self.releases.append(f"{what}, {seen}, {released.steps} steps")
        else:
            self.history.append(Gaussian(multiplier, 1.0, released.passes))
            self.releases.append(f"{what}, fixed batches, each sample in {released.passes} releases")

    def at_the_cut(self) -> None:
        """Smashed data and labels, as the edge sees them."""
        setting, released, privacy = self.setting, self.released, self.setting.privacy
        self.neighbours = REPLACED
        if privacy.cut is None:
            self.unbounded.append("smashed data reach the edge as they are")
        else:
            releases = released.steps if privacy.poisson else released.passes
            self.history.append(Gaussian(privacy.cut.noise_multiplier / 2, 1.0, releases))
            self.releases.append(
                f"smashed data: clipped, noise multiplier {privacy.cut.noise_multiplier:.4g} (half of it counts, for "
                f"a replaced sample), {releases} releases of a sample at most"
            )
        if setting.tail:
            self.unbounded.append(
                "gradients at the back's outputs, which depend on labels and on the tail, and mean losses reach the "
                "edge as they are"
            )
        elif privacy.labels is None:
            self.unbounded.append("labels reach the edge as they are")
        else:
            self.pure += privacy.labels.epsilon
            self.releases.append(f"labels: randomized response, epsilon {privacy.labels.epsilon:.4g}, drawn once")
        if privacy.dp_sgd is not None and privacy.dp_sgd.clipping == "joint" and setting.edge:
            self.unbounded.append("norms of samples' gradients reach the edge as they are, for the clip over both")

    def later_rows(self) -> None:
        """What rows of other samples tell the edge of a sample: the front has learnt from it before they came."""
        setting = self.setting
        if "front" not in setting.fixed:
            if setting.privacy.segment("front", setting.batch_size) is None:
                self.unbounded.append(
                    "the front learns from samples as they are, without DP-SGD, and each later row of other samples "
                    "shows the edge what it has learnt"
                )
            else:
                self.gradients(["front"], sampled=False)
        elif setting.fitted:
            self.unbounded.append(
                f"the front is frozen, but {setting.fitted}: it may know these data, and each row of other samples "
                "shows what it knows; declare privacy.public_front=true if nothing of it was fitted to these data"
            )
        else:
            self.releases.append("the front: frozen, and taken as never fitted to these data")

    def updates(self) -> None:
        """The sum of the devices' clipped updates."""
        client = self.setting.privacy.client
        assert client is not None
        self.neighbours = DEVICE
        self.history.append(Gaussian(client.noise_multiplier, 1.0, self.released.rounds))
        self.releases.append(
            f"the sum of the devices' clipped updates: noise multiplier {client.noise_multiplier:.4g}, not amplified, "
            f"{self.released.rounds} rounds"
        )


def claim(adversary: str, setting: Setting, released: ReleaseCounts) -> Claim:
    """What an adversary can learn of a device of which so much was released."""
    account = _Account(setting, released)
    if adversary in ("model", "devices", "cloud"):
        _received(account, adversary)
        found = account.claim()
        if found.epsilon is None and setting.local:
            # All that they see follows from what cloud and edge see together.
            together = claim("cloud+edge", setting, released)
            return found if together.epsilon is None else together
        return found
    if adversary in ("edge", "cloud+edge") and setting.edge:
        account.at_the_cut()
        account.later_rows()
    elif adversary == "edge":
        account.releases.append("there is no edge server")
    elif adversary == "cloud+edge":
        _received(account, "cloud")
    elif setting.encrypted or not setting.secure:
        said = "sizes and times of encrypted messages" if setting.encrypted else "nothing: the run is simulated"
        account.releases.append(said)
    else:
        account.unbounded.append("the wire is not encrypted (insecure=true)")
    return account.claim()


def _received(account: _Account, adversary: str) -> None:
    """Add to an account what an adversary learns from the models that it receives, and from what comes with them."""
    setting, privacy = account.setting, account.setting.privacy
    if privacy.detector is not None and setting.edge:
        account.unbounded.append(
            "a device's detector stops it by its cut gradients and labels as they are, and who does not stop tells "
            "something too"
        )
    if adversary == "devices" and setting.spread > 1:
        account.unbounded.append("averaged cut gradients (phi > 0) reach other devices without noise")
    if adversary == "cloud" and privacy.client is not None:
        account.unbounded.append("it sees the updates before it adds the noise, and is trusted to add it")
    elif adversary == "cloud" and privacy.losses:
        account.unbounded.append("training losses are reported to it as they are")
    elif privacy.client is not None:
        account.updates()
    else:
        account.gradients(setting.segments)


def _effective(multiplier: float, segment: str, spread: int) -> float:
    """Returns the noise multiplier per sample; `spread` fronts move by at most 2 C each, for a replaced sample."""
    if spread == 1:
        return multiplier
    return multiplier / (2 * math.sqrt(spread if segment == "front" else 1))
