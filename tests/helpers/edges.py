"""An edge in a round, and uploads for it."""

import torch

from fsl.codecs import Identity
from fsl.importing.import_paths import ALLOWED
from fsl.importing.spec import Spec
from fsl.messages.steps import UploadPacket
from fsl.objective import CrossEntropy
from fsl.round.edge_server import EdgeServer
from fsl.segments.learner import SegmentRuntime
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.sums import WeightedSum
from fsl.split.cutting import split
from fsl.trainers import EdgeBench
from tests.helpers.small import small_model

ADAM = OptimizerRecipe(Spec("torch.optim.Adam"), ALLOWED)


def edge_with(trainer, round=1, recipe=ADAM, kept=None, memory=None):
    model = split(small_model("batch", 0.3), "pool")
    runtime = SegmentRuntime("back", model["back"].train(), torch.device("cpu"))
    server = EdgeServer(0, trainer, Identity, Identity, memory=memory)
    memory = {} if kept is None else kept
    bench = EdgeBench(
        seed=0,
        round=round,
        back=runtime,
        objective=CrossEntropy(),
        optimizer=recipe,
        learning_rate=0.01,
        kept=memory.get,
        keep=lambda o, ln: memory.update({o: ln.optimizer_state()}),
        total=lambda: WeightedSum(runtime.layout),
    )
    server.begin(bench, runtime.layout.capture())
    return server


def packet(device, step, rows=6):
    generator = torch.Generator().manual_seed(100 * device + step)
    smashed = torch.randn(rows, 4, 4, 4, generator=generator)
    targets = torch.randint(4, (rows,), generator=generator)
    return UploadPacket(device=device, step=step, smashed=Identity().encode(smashed), targets=targets)
