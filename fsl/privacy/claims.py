"""What an adversary can learn of one device: the releases that it sees, and the epsilon that follows.

A figure "epsilon = 3" says nothing before it says against whom.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fsl.privacy.accounting import Gaussian, combined, epsilon
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
    """What of a run decides who sees what.

    `spread`: the devices whose fronts one sample moves in a step (SGLR's averaged gradients). `secure`: the noise is
    of the machines' secure generators. `encrypted`: the wire is.
    """

    privacy: Privacy
    fronts: str
    edge: bool  # False: devices train the whole model
    batch_size: int
    passes: int  # over a device's samples in a round
    spread: int = 1
    secure: bool = False
    encrypted: bool = False


@dataclass(frozen=True)
class Tally:
    """What of one device was released so far."""

    samples: int
    rounds: int = 0
    steps: int = 0
    passes: int = 0  # releases of each sample, where batches are fixed

    def more(self, steps: int, passes: int, rounds: int = 1) -> "Tally":
        """With the releases of another round."""
        return replace(self, rounds=self.rounds + rounds, steps=self.steps + steps, passes=self.passes + passes)


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
    tally: Tally
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
                self.unbounded.append("the noise multiplier is 0")
        how = [f"{privacy.accountant.upper()} accountant"] if self.history else []
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
        """Gradients of these segments; `sampled`: who sees them does not see which samples took part."""
        setting, tally = self.setting, self.tally
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
            multiplier = combined([_effective(s.noise_multiplier, name, setting) for name, s in found if s is not None])
        if self.neighbours == REPLACED and setting.spread == 1:
            multiplier /= 2  # one contribution leaves, another comes
        if setting.spread > 1:
            self.neighbours = REPLACED
        what = f"gradients of the {' and the '.join(segments)}: DP-SGD, noise multiplier {multiplier:.4g}"
        if setting.privacy.poisson:
            rate = setting.batch_size / tally.samples if sampled else 1.0
            self.history.append(Gaussian(multiplier, rate, tally.steps))
            seen = f"Poisson rate {rate:.4g}" if sampled else "not amplified: who took part is seen"
            self.releases.append(f"{what}, {seen}, {tally.steps} steps")
        else:
            self.history.append(Gaussian(multiplier, 1.0, tally.passes))
            self.releases.append(f"{what}, fixed batches, each sample in {tally.passes} releases")

    def at_the_cut(self) -> None:
        """Smashed data and labels, as the edge sees them."""
        setting, tally, privacy = self.setting, self.tally, self.setting.privacy
        self.neighbours = REPLACED
        if privacy.cut is None:
            self.unbounded.append("smashed data reach the edge as they are")
        else:
            releases = tally.steps if privacy.poisson else tally.passes
            self.history.append(Gaussian(privacy.cut.noise_multiplier / 2, 1.0, releases))
            self.releases.append(
                f"smashed data: clipped, noise multiplier {privacy.cut.noise_multiplier:.4g} (half of it counts, for "
                f"a replaced sample), {releases} releases of a sample at most"
            )
        if privacy.labels is None:
            self.unbounded.append("labels reach the edge as they are")
        else:
            self.pure += privacy.labels.epsilon
            self.releases.append(f"labels: randomized response, epsilon {privacy.labels.epsilon:.4g}, drawn once")
        if privacy.dp_sgd is not None and privacy.dp_sgd.clipping == "joint" and setting.edge:
            self.unbounded.append("norms of samples' gradients reach the edge as they are, for the clip over both")

    def updates(self) -> None:
        """The sum of the devices' clipped updates."""
        client = self.setting.privacy.client
        assert client is not None
        self.neighbours = DEVICE
        self.history.append(Gaussian(client.noise_multiplier, 1.0, self.tally.rounds))
        self.releases.append(
            f"the sum of the devices' clipped updates: noise multiplier {client.noise_multiplier:.4g}, not amplified, "
            f"{self.tally.rounds} rounds"
        )


def claim(adversary: str, setting: Setting, tally: Tally) -> Claim:
    """What an adversary can learn of a device of which so much was released."""
    account, privacy = _Account(setting, tally), setting.privacy
    local = privacy.cut is not None and privacy.labels is not None and setting.edge
    shared = ["back"] if setting.fronts == "private" else ["front", "back"]
    # A back that only ever saw protected data is as protected as they are.
    learnt = [name for name in shared if not (name == "back" and local and privacy.segment("back", 1) is None)]
    if adversary in ("model", "devices"):
        if privacy.client is not None:
            account.updates()
        else:
            _trained(account, learnt, shared)
    elif adversary == "edge":
        if not setting.edge:
            account.releases.append("there is no edge server")
        else:
            account.at_the_cut()
    elif adversary == "cloud":
        if privacy.client is not None:
            account.unbounded.append("it sees the updates before it adds the noise, and is trusted to add it")
        elif privacy.losses:
            account.unbounded.append("training losses are reported to it as they are")
        else:
            _trained(account, learnt, shared)
    elif adversary == "cloud+edge":
        _together(account)
    elif setting.encrypted or not setting.secure:
        said = "sizes and times of encrypted messages" if setting.encrypted else "nothing: the run is simulated"
        account.releases.append(said)
    else:
        account.unbounded.append("the wire is not encrypted (insecure=true)")
    return account.claim()


def _trained(account: _Account, learnt: Sequence[str], shared: Sequence[str]) -> None:
    if list(learnt) != list(shared):
        account.at_the_cut()
    if learnt:
        account.gradients(learnt, sampled=list(learnt) == list(shared))


def _together(account: _Account) -> None:
    setting = account.setting
    if setting.edge:
        account.at_the_cut()
        if setting.fronts != "private":
            account.gradients(["front"], sampled=False)
    elif setting.privacy.losses:
        account.unbounded.append("training losses are reported to the cloud as they are")
    elif setting.privacy.client is not None:
        account.unbounded.append("the cloud sees the updates before it adds the noise, and is trusted to add it")
    else:
        account.gradients(["front", "back"])


def _effective(multiplier: float, segment: str, setting: Setting) -> float:
    """Per sample: where one moves several devices' fronts, by at most 2 C each, it is replaced, not left out."""
    if setting.spread == 1:
        return multiplier
    return multiplier / (2 * math.sqrt(setting.spread if segment == "front" else 1))
