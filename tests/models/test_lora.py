"""Adapters on a model: which modules get one, what they are saved as, and what is refused."""

import copy
import sys
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fsl
from fsl.errors import ConfigError
from fsl.models.lora import has_adapters, save_adapter
from tests.helpers.causal import decoder
from tests.helpers.runs import assert_same_bits

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")]
IDS = torch.arange(12).view(2, 6).repeat(1, 4)


def adapted(train=(), **options):
    torch.manual_seed(1)
    model = fsl.lora(decoder(), **({"r": 2, "targets": ["query", "value"], "train": train} | options))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:  # zero at first
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    return model


def test_a_copy_gets_adapters_and_begins_as_the_model_was():
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    found = fsl.lora(model, r=2, targets=["query", "value"])
    assert_same_bits(before, model.state_dict())
    assert torch.equal(found(IDS), model(IDS))
    trained = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert len(trained) == 3 * 2 * 2
    assert all(".lora_" in name for name in trained)
    assert has_adapters(found)
    assert not has_adapters(model)


@pytest.mark.parametrize("train", [(), ["head"]], ids=["adapters", "and the head"])
def test_peft_reads_what_is_saved(train, tmp_path):
    import peft  # seconds, which not each worker needs

    model = adapted(train).eval()
    if train:
        model.head.weight.data.add_(1.0)
    save_adapter(model, tmp_path)
    assert all(name.startswith("base_model.model.") for name in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = peft.PeftModel.from_pretrained(decoder(), tmp_path).eval()
    assert torch.equal(loaded(IDS), model(IDS))


def test_a_model_that_peft_has_wrapped_is_saved_and_merged_alike(tmp_path):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["head"])
    model = peft.get_peft_model(decoder(), config).eval()
    model.base_model.model.head.modules_to_save.default.weight.data.add_(1.0)
    fsl.save_adapter(model, tmp_path)
    assert torch.equal(peft.PeftModel.from_pretrained(decoder(), tmp_path).eval()(IDS), model(IDS))
    assert fsl.merged(model).state_dict().keys() == decoder().state_dict().keys()
    assert torch.allclose(fsl.merged(model)(IDS), model(IDS), atol=1e-5)


def test_merged_weights_have_the_models_own_keys():
    model = adapted()
    merged = fsl.merged(model)
    assert merged.state_dict().keys() == decoder().state_dict().keys()
    assert torch.allclose(merged(IDS), model(IDS), atol=1e-5)
    assert not torch.allclose(merged(IDS), decoder()(IDS), atol=1e-2)
    assert has_adapters(model)  # it was copied


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"r": 0}, r"lora\.r=0"),
        ({"alpha": 0.0}, r"lora\.alpha=0\.0"),
        ({"dropout": 1.0}, r"lora\.dropout=1\.0"),
        ({"targets": []}, r"lora\.targets=\[\]"),
        ({"targets": ["querry"]}, "no module's name ends with 'querry'; those that may: down, head, key"),
        ({"targets": ["norm"]}, "peft puts no adapters into Decoder"),
        ({"targets": None}, "peft puts no adapters into Decoder"),
        ({"targets": ["query"], "train": ["hat"]}, "the model has no module 'hat'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, said):
    with pytest.raises(ConfigError, match=said):
        fsl.lora(decoder(), **options)


def test_what_has_no_adapters_or_has_them_already(tmp_path):
    for refused in (fsl.merged, lambda model: save_adapter(model, tmp_path)):
        with pytest.raises(ConfigError, match="the model has no adapters"):
            refused(decoder())
    with pytest.raises(ConfigError, match="has adapters already"):
        fsl.lora(adapted(), targets=["key"])


def test_without_peft_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"peft is not installed; pip install 'fsl-flower\[lora\]'"):
        fsl.lora(decoder(), targets=["query"])
