"""One back on what several parties send of the same people: vertical split learning."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fsl.errors import ConfigError
from fsl.models.vertical_model import FusedBack
from fsl.segments.states import State
from fsl.segments.tensor_trees import TensorTree, Values
from fsl.trainers.back_steps import cut_gradient, cut_leaf
from fsl.trainers.edge_trainer import EdgeBench, SharedBack
from fsl.trainers.judging import Trial, refusal
from fsl.trainers.uploads import Reply, Upload


class Fused(SharedBack):
    """One back for all parties: a step's uploads are of the same people, and are fused, one forward, one backward.

    Each party gets the gradient of the one loss at its own cut. Device k is the k-th party of the model; a party that
    uploads nothing in a step is missing in it, and the fusion says what it counts as. All uploads of a step bring the
    same targets: the labels of its people.

    Vepakomma et al. 2018 (arXiv 1812.00564), "vertically partitioned" configuration; Ceballos et al. 2020 (arXiv
    2008.04137).
    """

    lockstep = True
    tails = True
    one_loss = True

    def begin(self, bench: EdgeBench, edge: int, back: State) -> None:
        """Start a round with one back for all parties."""
        super().begin(bench, edge, back)
        module = bench.back.module
        if not isinstance(module, FusedBack):
            raise ConfigError("trainer Fused: the back takes what one device sends; give an fsl.models.VerticalModel")
        self.parties = module.parties
        self._layer_seeds = bench.layer_seeds(0)  # as where one device trains the whole model

    def step(self, messages: Sequence[Upload]) -> Sequence[Reply]:
        """One step of the back on what the parties that are there have sent; to each the gradient at its cut."""
        first = messages[0]
        leaves = {self.parties[upload.device]: cut_leaf(upload.smashed) for upload in messages}
        with Trial(self.learner, first, self.bench.loss_limit) as trial:
            smashed = TensorTree.of({party: leaf.clone() for party, leaf in leaves.items()})
            outputs = self.learner.forward(smashed, self._layer_seeds.at(first.step))
            loss = self.bench.objective.loss(outputs, first.targets)
            loss.backward()
            made = [leaf.grad for leaf in leaves.values() if isinstance(leaf, Tensor)]
            if not trial.passes([loss], made):
                return [refusal(upload) for upload in messages]
            self.learner.step(first.step)
        self.examples += len(first.targets)
        if all(gradient is None for gradient in made):
            cut_gradient(next(iter(leaves.values())), None)  # says that no front would ever be trained
        return [
            Reply(upload.device, upload.step, _gradient(leaf), loss.detach(), judged=trial.judged)
            for upload, leaf in zip(messages, leaves.values(), strict=True)
        ]


def _gradient(leaf: Values) -> Tensor:
    """Returns a party's cut gradient; zeros where the loss does not depend on what it sent, beside others'."""
    assert isinstance(leaf, Tensor)  # a party's front gives one
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
