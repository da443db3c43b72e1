"""Models of Hugging Face: by a folder or a name with their trained weights, or by a configuration with random ones."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, one_of
from fsl.models.hub import place_of, quiet, transformers

HeadTask = Literal["sequence_classification", "token_classification"]
_AUTO = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}
_OPTION = "model.pretrained"
_CODE = (
    "auto_map",
    "quantization_config",
    "custom_pipelines",
    "attn_implementation",
)  # they load code
_NOT_TOLD = ("architectures", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id", "num_labels")


@checks_types("model.")
def huggingface(
    pretrained: str | None = None,
    task: HeadTask = "sequence_classification",
    classes: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load a transformer with a head of `classes` outputs for its `task`, in float32; its cut: after the middle block.

    `pretrained` is a folder (config.json, model.safetensors) or a name on the Hub, whose weights are loaded; those of
    the head are drawn where it has none of this size. `config` describes a model with random weights instead, as in
    `{"model_type": "bert", "num_hidden_layers": 2}`. The batch gives inputs by name, as `fsl.data.from_text` makes it.

    The model is transformers' own, with its own keys. Nothing of it is run that its folder or the Hub brings as code.
    ConfigError for what cannot be loaded.
    """
    one_of("model.task", task, get_args(HeadTask))
    if (pretrained is None) == (config is None):
        raise ConfigError(
            "model.pretrained (a folder, or a name on the Hub) or model.config (of a model with random weights) must "
            "be given, and not both"
        )
    if classes is None:
        raise ConfigError("model=huggingface: nothing says how many outputs it is to have; give model.classes")
    what = f"model.pretrained={pretrained}" if config is None else "model.config"
    library = transformers(what)
    if isinstance(classes, bool) or classes < 1:
        raise ConfigError(f"model.classes={classes}: a model has at least 1 output")
    settings = _configuration(library, pretrained, config, what)
    settings.num_labels = classes
    auto = getattr(library, _AUTO[task])
    with quiet(library), _in_one_line(what):
        if pretrained is None:
            model = auto.from_config(settings, torch_dtype=torch.float32)
        else:
            model = auto.from_pretrained(
                place_of(pretrained, "model.pretrained"),
                config=settings,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
    model = model.float()
    if (middle := middle_block(model)) is not None:
        model.default_cut = middle
    return model


def told_to_nodes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a federation's options of this model for its nodes: its configuration in place of where it lies.

    Weights come with every round, and a node reads nothing because the network names it.
    """
    values = dict(options)
    pretrained = values.pop("pretrained", None)
    if pretrained is None:
        return values
    what = f"model.pretrained={pretrained}"
    settings = _configuration(transformers(what), pretrained, None, what)
    plain = json.loads(json.dumps(settings.to_diff_dict()))
    told = {name: value for name, value in plain.items() if not name.startswith("_") and name not in _NOT_TOLD}
    return values | {"config": told | {"model_type": settings.model_type}}


def middle_block(model: nn.Module) -> str | None:
    """Returns the name of the block up to which half of a model's blocks lie; None for a model without blocks."""
    lists = [(name, len(module)) for name, module in model.named_modules() if type(module) is nn.ModuleList]
    if not lists:
        return None
    name, count = max(lists, key=lambda each: each[1])
    return f"{name}.{(count - 1) // 2}"


def _configuration(library: Any, pretrained: str | None, config: Mapping[str, Any] | None, what: str) -> Any:
    with quiet(library), _in_one_line(what):
        if config is None:
            settings = library.AutoConfig.from_pretrained(place_of(str(pretrained), _OPTION), trust_remote_code=False)
        else:
            values = dict(config)
            if foreign := [name for name in values if name in _CODE or name.startswith("_") or "backbone" in name]:
                raise ConfigError(f"{what} has the key '{foreign[0]}', which may load code or kernels; leave it out")
            kind = values.pop("model_type", None)
            if not isinstance(kind, str):
                raise ConfigError(f"{what} has no model_type; give it, as in {{model_type: bert}}")
            settings = library.AutoConfig.for_model(kind, **values)
    settings.use_cache = False  # nothing is generated, and a cache does not cross a cut
    if getattr(settings, "pad_token_id", None) is None and isinstance(getattr(settings, "eos_token_id", None), int):
        settings.pad_token_id = settings.eos_token_id  # as fsl.data.from_text pads
    return settings


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Tell what the library raises in one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{what} cannot be loaded as a model ({type(error).__name__}: {line}); give a folder with config.json and "
            "model.safetensors, or a name on the Hub"
        ) from None
