"""A segment trained by DP-SGD: Opacus finds each sample's gradient, and clips and adds them up."""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fsl.errors import RunError, WireError
from fsl.privacy.clip_rules import ClipRule, clip_by_layer, joint_factors, layers_of
from fsl.privacy.empty_batches import EmptyBatchLearner
from fsl.privacy.noise import Draw, StepNoise
from fsl.privacy.settings import SegmentPrivacy
from fsl.segments.learner import Mark, SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State

# Of a segment's first layer, whose inputs have no gradient; its weights have theirs.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed with respect to")


class Privatizer(DPOptimizer):
    """Turns the per-sample gradients of some parameters into one gradient with noise.

    Opacus's own optimizer, with the noise from where fsl takes it, and clip factors that may be given from outside.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        privacy: SegmentPrivacy,
        rule: ClipRule | None = None,
        names: Sequence[str] = (),
    ):
        """`rule`: how it clips (None: by the norm of the whole gradient), by the layers in the parameters' `names`."""
        super().__init__(
            torch.optim.SGD(parameters, lr=0.0),  # it only carries the parameters
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.clip,
            expected_batch_size=1,
        )
        self.privacy = privacy
        self._rule = rule
        self._layers = layers_of(names)
        self._noise: Draw | None = None
        self._factors: Tensor | None = None
        self._norms = torch.zeros(0, len(parameters))

    def norms(self) -> Tensor:
        """The squared norm of each sample's gradient, (B,); one that is not finite is replaced by zero."""
        self._measure()
        squares = [_by_sample(each).square().sum(1) for each in self.grad_samples]
        total = torch.stack(squares).sum(0)
        return total.clamp(max=torch.finfo(total.dtype).max / 4)  # so that it stays finite beside the other segment's

    def privatize(self, noise: Draw, batches: int = 1, factors: Tensor | None = None) -> None:
        """Clip, add up, add noise, divide by the (expected) rows of the batches; the result is in parameters' `grad`.

        `factors` (B,): what each sample's gradient is multiplied by, where it does not follow from this segment alone.
        """
        rows = self._measure()
        if factors is not None and factors.shape != (rows,):
            raise RunError(f"{rows} samples have gradients, and {tuple(factors.shape)} clip factors were given")
        expected = self.privacy.expected_rows
        self.expected_batch_size = max(rows, 1) if expected is None else expected * batches
        self._noise, self._factors = noise, factors
        self.pre_step()
        for parameter in self.params:
            parameter.grad_sample = parameter.summed_grad = None

    def clip_and_accumulate(self) -> None:
        """As Opacus, by the norms that were measured; or with the factors that were given."""
        for parameter, factors in zip(self.params, self._clip_factors()):
            samples = self._get_flat_grad_sample(parameter)
            parameter.summed_grad = torch.einsum("i,i...", factors.to(samples), samples)

    def _clip_factors(self) -> list[Tensor]:
        """What each sample's gradient (B,) is multiplied by, for each parameter."""
        if self._factors is None and self._rule is not None:
            return list(clip_by_layer(self._rule, self._norms, self._layers, self.max_grad_norm).unbind(1))
        factors = self._factors
        if factors is None:
            factors = (self.max_grad_norm / (self._norms.norm(dim=1) + 1e-6)).clamp(max=1.0)
        return [factors] * len(self.params)

    def add_noise(self) -> None:
        """As Opacus, with numbers of our own source."""
        assert self._noise is not None
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            total = parameter.summed_grad
            # 0 * noise would cost as much as noise.
            parameter.grad = total + std * self._noise(total.shape).to(total) if std else total.clone()

    def _fill_empty(self) -> None:
        """A batch without rows has run through no layer."""
        for parameter in self.params:
            if getattr(parameter, "grad_sample", None) is None:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))

    def _measure(self) -> int:
        """Find the norms (B, parameters) of this step's samples; returns B.

        A sample whose gradient has no finite norm counts for nothing: a factor of 0 would leave infinity times 0.
        RunError where parameters do not agree on B, since then their rows are no samples.
        """
        self._fill_empty()
        samples = self.grad_samples
        if len(sizes := sorted({len(each) for each in samples})) > 1:
            raise RunError(
                f"gradients per sample have {' and '.join(map(str, sizes))} rows in one step, so that rows are no "
                "samples and a clip bounds nothing; freeze parameters that do not take part in every step"
            )
        self._norms = torch.stack([_by_sample(each).norm(dim=1) for each in samples], dim=1)
        if not bool((finite := self._norms.isfinite()).all()):
            wrong = ~finite.all(1)
            self._norms = self._norms.masked_fill(wrong.unsqueeze(1), 0.0)
            for parameter, each in zip(self.params, samples):
                parameter.grad_sample = each.masked_fill(wrong.view(-1, *[1] * (each.dim() - 1)), 0.0)
        return sizes[0]


def _by_sample(samples: Tensor) -> Tensor:
    return samples.reshape(len(samples), math.prod(samples.shape[1:]))


class PrivateLearner(EmptyBatchLearner):
    """A learner whose steps are releases of DP-SGD, each with noise of its own.

    It has a module of its own: Opacus keeps activations in the module, and learners would find each other's there.
    """

    def __init__(
        self, runtime: SegmentRuntime, recipe: OptimizerRecipe, privacy: SegmentPrivacy, rule: ClipRule | None = None
    ):
        module = runtime.copied()
        hookable(module)
        super().__init__(SegmentRuntime(runtime.name, module, runtime.accelerator), recipe)
        self.runtime.install(self.replica)
        parameters, names = self.replica.parameters, self.runtime.layout.trained
        self.privatizer = Privatizer(parameters, privacy, rule, names) if parameters else None
        if self.privatizer is not None:
            GradSampleHooks(module)
        self._noise: StepNoise | None = None
        self._device: int | None = None

    def lend(self, noise: StepNoise, device: int | None) -> None:
        """Draw the noise of this device (None: of the edge) in the coming steps."""
        self._noise, self._device = noise, device

    def begin(
        self,
        state: State,
        learning_rate: float,
        kept: Mapping[str, Tensor] | None = None,
        transients: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Like `Learner.begin`, and drops what a broken session left."""
        super().begin(state, learning_rate, kept, transients)
        self._forget()

    def undo(self, mark: Mark) -> None:
        """Like `Learner.undo`, and drops what Opacus kept of the passes."""
        super().undo(mark)
        self._forget()

    def _forget(self) -> None:
        for module in self.runtime.module.modules():
            module.__dict__.pop("activations", None)
            module.__dict__.pop("max_batch_len", None)
        for parameter in self.replica.parameters:
            parameter.grad_sample, parameter._forward_counter = None, 0  # type: ignore[attr-defined]

    def step(self, step: int | None = None, *, device: int | None = None, batches: int = 1, backwards: int = 1) -> None:
        """One optimizer step with the private gradient of the rows since the last one.

        Its noise is that of this `step` of the device it is lent to (or of `device`), divided by what so many
        `batches`, and those that came empty, are expected to have.
        """
        draw = self._draw(step, device)
        self._pace(step, device)
        self._release(draw, batches)

    def _pace(self, step: int | None, device: int | None) -> None:
        if step is not None:
            self.pace(step, device)

    def _draw(self, step: int | None, device: int | None) -> Draw:
        """The noise of a step; RunError where a step does not say which it is."""
        if step is None or self._noise is None:
            raise RunError(
                f"segment {self.runtime.name} is trained privately, but its step does not say which of the round it "
                "is, so that it has no noise; call learner.step(upload.step) on a learner of bench.borrow()"
            )
        return self._noise.of(self._device if device is None else device, step)

    def _release(self, draw: Draw, batches: int, factors: Tensor | None = None) -> None:
        batches, self.empty_batches = batches + self.empty_batches, 0
        if self.privatizer is not None:
            self.privatizer.privatize(draw, batches, factors)
        super().step()


class JointLearner(PrivateLearner):
    """A private learner of one of two segments that are clipped together.

    Its step is put off until `apply_clip_factors`; until then `norms` (B,) are the squared norms of the samples'
    gradients over this segment.
    """

    norms = torch.zeros(0)
    _waiting: tuple[Draw, int] | None = None

    def step(self, step: int | None = None, *, device: int | None = None, batches: int = 1, backwards: int = 1) -> None:
        """Measure the samples' norms, and put the step off."""
        if self._waiting is not None:
            raise RunError(f"segment {self.runtime.name}: the clip factors of the previous step never came")
        assert self.privatizer is not None
        self.norms = self.privatizer.norms()
        self._waiting = self._draw(step, device), batches
        self._pace(step, device)

    def apply_clip_factors(self, factors: Tensor) -> None:
        """Make the step that was put off, each sample's gradient multiplied by its factor (B,)."""
        if self._waiting is None:
            raise RunError(f"segment {self.runtime.name}: clip factors came for no step")
        (draw, batches), self._waiting = self._waiting, None
        self._release(draw, batches, factors)

    def exchange(self, norms: Tensor | None) -> Tensor:
        """Make the step that was put off, now that the norms (B,) over the other segment are known.

        Returns the factors (B,) by which the other segment is to clip, too; WireError where these cannot be its norms.
        """
        own = self.norms
        if norms is None or norms.shape != own.shape or not norms.isfinite().all() or (norms < 0).any():
            raise WireError("the edge did not tell the norms over the back, which one clip over both segments needs")
        assert self.privatizer is not None
        factors = joint_factors(self.privatizer.privacy.clip, own, norms.to(own))
        self.apply_clip_factors(factors)
        return factors

    def _forget(self) -> None:
        super()._forget()
        self._waiting = None


def hookable(module: nn.Module) -> None:
    """Activations in place would change what Opacus's hooks have kept."""
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
