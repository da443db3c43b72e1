import fcntl
import functools
import gc
import logging
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
from pathlib import Path

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a Ray of its own: Flower's engine joins what it finds there, and waits for ever if that ends.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has 107 characters at most

import pytest
import torch

import fsl
from fsl.deployment.certs import CertificateFolder, identities, issue
from fsl.run import plotting, preflight, prepared
from tests.helpers.asked_once import known_helpers, measured_once, refused_once
from tests.helpers.composed_once import ComposedOnce
from tests.helpers.copied import Copied
from tests.helpers.installed_wheel import InstalledWheel
from tests.helpers.places import ROOT
from tests.helpers.tls_options import tls

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all tests are found: what they are made of stays
CIFAR10 = Path(os.environ.get("FSL_DATA", ROOT.parent / "shared" / "data")) / "cifar10"


# Federations of real processes, ten each, run on one worker, one after another: side by side they slow each
# other into timeouts. So do tests that want a Ray: starting one takes twenty seconds, and a worker starts it once.
FEDERATIONS = ("test_federation.py", "test_moving_federation.py", "test_local_federation.py")
RAYS = ("test_grids.py", "test_flower_run.py")  # and tests that have `ray` in their names, or among their parameters
LONGEST = (
    *FEDERATIONS,
    *RAYS,
    "test_sessions.py",
    "test_own_strategy.py",
    "test_sweep.py",
    "test_attacks.py",
    "test_moves.py",
    "test_equivalences.py",
    "test_private_training.py",
    "test_command.py",
    "test_search.py",
    "test_private_wire.py",
    "test_edge_fails.py",
    "test_fedfly.py",
    "test_kept.py",
    "test_ledger.py",
    "test_poison.py",
    "test_hostile.py",
    "test_steps.py",
    "test_u_shaped_moves.py",
    "test_vertical_wire.py",
    "test_multi_hop_wire.py",
    "test_servers_above.py",
    "test_private_tails_wire.py",
)
# It reads what `make types` leaves, which .ci/run has beside the tests.
LAST = "test_public_face.py"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests stay on one worker, all federations' together, and all that want a Ray."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            if Path(file).name in RAYS or re.search(r"_ray|\bray\b", nodeid.rpartition("::")[2]):
                return "rays"
            return "federations" if Path(file).name in FEDERATIONS else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """The longest files begin first, so that no worker is left alone with one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)} | {LAST: len(LONGEST) + 1}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """What ten thousand tests are made of stays: to look through it for garbage again took a sixth of their time."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 100)
    # pytest puts its handlers on each logger that does not propagate, six times a test. torch has forty of them.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            logger.propagate = True


@pytest.fixture(autouse=True, scope="module")
def garbage_of_one_file():
    """A file's garbage goes with it, and what it imported stays."""
    yield
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)


BLANK_PNG = (  # one pixel
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\x01\x01\0\xb18\xf6\x14\0\0\0\0IEND\xaeB`\x82"
)
draw = plotting.to_bytes


@pytest.fixture(autouse=True, scope="session")
def quick_runs():
    """Spares a run what takes half of its seconds where it is short, and what few tests look at.

    A run draws five pictures: here they are blank, except for tests that ask for `pictures`. Hydra composes a
    configuration once before the real time to read `hydra.mode`, and takes None where that fails; no test sets it. Each
    time it reads thirty YAML files, which lie in packages and do not change: here a worker reads each once, composes
    once what is chosen alike, and asks once which version of Hydra's rules holds, not some hundred times.
    Whether a model's segments train as it does, and what they cost, is asked once of a model. Files are not waited for
    until they lie on the disk: no test switches the power off. A seed for accelerators that are not there is not kept
    for them, each time with all lines of the stack.
    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers the sources
    packages = SourcesRegistry.instance().resolve("pkg")
    read, known = packages.load_config, {}

    def read_once(source, config_path):
        place = source.path, config_path
        if place not in known:
            known[place] = pickle.dumps(read(source, config_path))
        return pickle.loads(known[place])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packages, "load_config", read_once)
        ComposedOnce().patch(patch)
        patch.setattr(version, "_get_version", functools.cache(version._get_version))
        patch.setattr(Hydra, "get_mode", lambda self, config_name, overrides: None)
        patch.setattr(plotting, "to_bytes", lambda figure, form, dpi=150: BLANK_PNG)
        known_helpers(patch)
        patch.setattr(preflight, "refuse_unfaithful", refused_once(preflight.refuse_unfaithful))
        patch.setattr(prepared, "segment_costs", measured_once(prepared.segment_costs))
        patch.setattr(os, "fsync", lambda descriptor: None)
        for accelerator in (torch.cuda, torch.xpu, torch.mtia):
            if not accelerator.is_available():
                patch.setattr(accelerator, "manual_seed_all", lambda seed: None)
        yield


@pytest.fixture
def pictures(monkeypatch):
    """Runs draw as they do elsewhere."""
    monkeypatch.setattr(plotting, "to_bytes", draw)


@pytest.fixture(autouse=True)
def one_thread():
    """One thread and two do not agree to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def log_of_one_test():
    """A program that a test runs in this process sets the log up for itself alone."""
    root = logging.getLogger()
    level, handlers = root.level, [*root.handlers]
    yield
    root.setLevel(level)
    for handler in [each for each in root.handlers if each not in handlers]:
        root.removeHandler(handler)


@pytest.fixture(autouse=True, scope="module")
def no_network_thread():
    """What a file's tests opened, they closed."""
    before = set(threading.enumerate())
    yield
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith(("edge-", "uplink"))]
    for thread in left:
        thread.join(10)
    assert not [t.name for t in left if t.is_alive()], "a test left its network's threads behind"


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    if not CIFAR10.is_dir():
        pytest.skip(f"CIFAR-10's Parquet files are not in {CIFAR10}; set FSL_DATA to the folder above cifar10/")
    return CIFAR10


@pytest.fixture
def ray_cluster():
    """One small Ray for a worker's tests, until one wants none; a test's Grid joins it."""
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)


@pytest.fixture(params=["copies", pytest.param("ray", marks=pytest.mark.shows)])
def elsewhere(request):
    """A backend whose nodes share nothing with the run but messages and files: copies, and processes of Ray's.

    Starting Ray's takes ten seconds a run. What they do besides is tested each time in tests/flower/test_grids.py.
    """
    if request.param == "copies":
        return Copied()
    request.getfixturevalue("ray_cluster")
    return fsl.Backend("ray", address="auto", cpus=0.5)


@pytest.fixture
def no_ray():
    """Flower's engine starts and ends a Ray of its own."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def encrypted(tmp_path_factory):
    """Options of a `Wired` whose devices and edge speak over TLS."""
    folder = tmp_path_factory.mktemp("certificates")
    issue(folder, identities(1, 1))
    edge, device = tls(CertificateFolder(folder), mutual=False)
    return {"edge_tls": edge | {"ca": device["ca"]}, "device_tls": device}


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory) -> InstalledWheel:
    """One for all workers: whoever comes first installs it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return InstalledWheel.in_folder(folder)
