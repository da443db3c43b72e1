"""What a node's processes import: a message's process next to nothing, a resident one only what it trains with."""

import subprocess
import sys

from flwr.app import ConfigRecord, RecordDict

from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.setup import build_workload
from fsl.flower.records import states_to_record
from fsl.flower.serde import record_bytes
from fsl.importing.spec import Spec
from fsl.messages.record_names import ARRAYS, CONFIG, PLAN, SETUP
from fsl.messages.round_plan import CohortTask, DeviceTask, RoundPlan
from fsl.round.workload import Worker
from tests.helpers.node_setups import setup_of
from tests.helpers.places import ROOT

MESSAGE = """
import sys
import flwr.app, flwr.clientapp, flwr.serverapp
flowers = set(sys.modules)
import fsl.simulations.flower_app, fsl.deployment.node.guard, fsl.deployment.node.asking
own = {name.partition(".")[0] for name in set(sys.modules) - flowers}
print(*sorted(own - sys.stdlib_module_names), *(name for name in sys.modules if name.startswith("fsl.wire")))
"""

RESIDENT = """
import sys
from pathlib import Path
from fsl.deployment.node.resident_process import node_host
from fsl.flower.serde import record_from_bytes
from fsl.messages.record_names import ARRAYS
host = node_host()
answer = host.answer("train", 1, record_from_bytes(Path(sys.argv[1]).read_bytes()), {"state": sys.argv[2]})
assert set(answer.array_records[ARRAYS])
print(*sorted({name.partition(".")[0] for name in sys.modules}), *sys.modules)
"""

HEAVY = {
    *("datasets", "flwr_datasets", "huggingface_hub", "hydra", "matplotlib", "opacus", "pandas", "PIL", "pyarrow"),
    *("ray", "scipy", "sklearn", "sympy", "tensorboard", "torch._dynamo.eval_frame"),
}


def words(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_message_s_process_imports_nothing_that_flower_does_not_but_psutil():
    assert words(MESSAGE) == ["fsl", "psutil"]


def test_a_resident_process_trains_without_heavy_libraries(tmp_path):
    setup = setup_of("model=mlp", "devices=2", "samples_per_device=16")
    worker = Worker(build_workload(setup, NodeSettings.read({"state": str(tmp_path)})))
    layouts = {name: segment.layout for name, segment in worker.segments.items()}
    states = {name: layout.pack(worker.segments[name].module.state_dict()) for name, layout in layouts.items()}
    plan = RoundPlan(
        run=setup.run,
        seed=0,
        round=1,
        cohorts=(CohortTask(edge=0, devices=(DeviceTask(device=0), DeviceTask(device=1))),),
        fronts="averaged",
        trainer=Spec("fsl.trainers.Replicated"),
        device=Spec("fsl.round.front_device.Device"),
        one_by_one=False,
        optimizer=Spec("torch.optim.SGD", {"momentum": 0.9}),
        learning_rates=dict.fromkeys(layouts, 0.1),
        reset_optimizer=True,
        batch_size=16,
        local_epochs=1,
        up=Spec("fsl.codecs.Identity"),
        down=Spec("fsl.codecs.Identity"),
    )
    config = ConfigRecord({SETUP: setup.to_json(), PLAN: plan.to_json()})
    message = tmp_path / "message"
    message.write_bytes(record_bytes(RecordDict({CONFIG: config, ARRAYS: states_to_record(layouts, states)})))
    assert HEAVY & set(words(RESIDENT, message, tmp_path / "state")) == set()
