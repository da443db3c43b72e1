"""One back trained first, and only then asked for cut gradients: CycleSL."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fsl import seeds
from fsl.errors import ConfigError, StepError
from fsl.segments.finite import usable
from fsl.segments.labelled_parts import loss_by
from fsl.segments.states import State
from fsl.segments.tensor_trees import activations_of, joined, of_activations, tensors_of
from fsl.trainers.back_steps import cut_gradient, cut_leaf
from fsl.trainers.edge_trainer import EdgeBench, SharedBack
from fsl.trainers.judging import judged
from fsl.trainers.uploads import Reply, Upload


class Cyclic(SharedBack):
    """The uploads of a window of steps become a data set: the back trains `passes` times over it in resampled
    batches, and then answers each upload with the gradient of its own mean loss at the updated weights.

    CycleSL (Wang, Bozkir & Kasneci 2025, arXiv 2511.18611). `batch_size`: rows of a resampled batch (None: as many
    as the largest upload has). With a `window` above 1 a device uploads so many steps from the same front before it
    gets their gradients. The back's buffers (BatchNorm's statistics) are those of its own training.
    """

    lockstep = True
    pools = True
    movable = True  # when its window is answered

    def __init__(self, passes: int = 1, window: int = 1, batch_size: int | None = None):
        for name, value in (("passes", passes), ("window", window), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: it must be at least 1")
        self._over = passes
        self.passes = passes + 1.0  # and once more for the answers
        self.window = window
        self.batch_size = batch_size

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for the whole cohort."""
        super().begin(bench, edge, back)
        self._layer_seeds = bench.pooled_layer_seeds(edge)
        self._trained = 0  # batches of resampled features
        self._waiting: list[Upload] = []
        self._steps = 0

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """Keep the uploads until the window is full; then train, and answer all of them."""
        self._waiting.extend(messages)
        self._steps += 1
        return self.flush() if self._steps == self.window else []

    def flush(self) -> Sequence[Reply]:
        """Train on what waits, and answer it."""
        uploads, self._waiting, self._steps = self._waiting, [], 0
        if not uploads:
            return []
        try:
            return self._serve(uploads)
        except Exception as error:
            raise StepError(uploads[0].device, uploads[0].step) from error

    @judged
    def _serve(self, uploads: Sequence[Upload]) -> list[Reply] | None:
        """Train and answer; None where that is no use, and the back is as it was."""
        learner, limit = self.learner, self.bench.loss_limit
        if limit is not None:
            counts = self._trained, self.examples
            before = learner.state().clone(), learner.optimizer_state(), learner.transients()
        self._train(uploads)
        replies = self._answer(uploads)
        if limit is None:
            return replies
        made = [
            *(t for r in replies if r.gradient is not None for t in tensors_of(r.gradient)),
            *learner.state().flats.values(),
            *learner.optimizer_state().values(),
        ]
        if usable([r.loss for r in replies], made, limit):
            return replies
        state, optimizer, transients = before
        learner.begin(state, self.bench.learning_rate, optimizer, transients)
        self._trained, self.examples = counts
        return None

    def layer_seed(self, uploads: Sequence[Upload]) -> int:
        """What the back's random layers draw from in its next pass."""
        return self._layer_seeds.at(self._trained + 1)

    def _train(self, uploads: Sequence[Upload]) -> None:
        features = joined([upload.smashed.detach() for upload in uploads])
        targets = torch.cat([upload.targets for upload in uploads])
        size = self.batch_size or max(len(upload.targets) for upload in uploads)
        self.learner.pace(uploads[0].step)
        for step in range(self._over):
            for rows in self._resampled(len(targets), size, uploads[0].step, step):
                loss_of = loss_by(self.bench.objective, targets[rows])
                loss_of(self.learner.forward(features[rows], self._next_seed(), loss_of)).backward()
                self.learner.step()
        self.examples += len(targets)

    def _resampled(self, rows: int, size: int, step: int, number: int) -> Iterator[Tensor]:
        """Batches of equal size but for one row: a last batch of one could not be normalised."""
        purpose = f"resample-{number}"
        draw = seeds.torch_generator(
            self.bench.seed, purpose, segment=f"edge-{self.edge}", round=self.bench.round, step=step
        )
        return iter(torch.randperm(rows, generator=draw).tensor_split(max(1, round(rows / size))))

    def _answer(self, uploads: Sequence[Upload]) -> list[Reply]:
        before = None
        if self.bench.back.layout.has_buffers:
            before = self.learner.state().clone(), self.learner.transients()
        replies = []
        for upload in uploads:
            leaf = cut_leaf(upload.smashed)
            loss_of = loss_by(self.bench.objective, upload.targets)
            loss = loss_of(self.learner.forward(leaf.clone(), self._next_seed(), loss_of))
            asked = [tensor for tensor in activations_of(leaf) if tensor.requires_grad]
            found = of_activations(torch.autograd.grad(loss, asked, allow_unused=True), leaf) if asked else None
            gradient = cut_gradient(leaf, found)
            replies.append(Reply(upload.device, upload.step, gradient, loss.detach()))
        if before is not None:
            self.learner.restore(*before)
        return replies

    def _next_seed(self) -> int:
        self._trained += 1
        return self._layer_seeds.at(self._trained)
