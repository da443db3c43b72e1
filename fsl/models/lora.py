"""Low-rank adapters (LoRA) on a model, by the library peft, an extra: `pip install 'fsl-flower[lora]'`.

Hu et al. 2021 (arXiv 2106.09685): a frozen matrix W gets a trained product beside it, W + (alpha / r) B A, of rank r.
SplitLoRA (Lin et al. 2024, arXiv 2407.00952): adapters on both sides of the cut; only they are trained and averaged.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.files import save_tensors, write_json

_ADAPTER = "default"  # peft's name for a model's first adapter
_PREFIX = "base_model.model."  # before keys in peft's files
_MARK = ".lora_"  # in the names of adapters' parameters


@checks_types("lora.")
@dataclass(frozen=True)
class Lora:
    """How a model gets adapters; ConfigError for values that cannot be.

    `r`: rank; fewer parameters travel the lower it is. `alpha`: the product counts alpha / r times. `dropout`: of an
    adapter's input, in training. `targets`: ends of names of modules that get one (query, value); None: peft's choice
    for a model of transformers. `train`: names of modules that are trained beside the adapters, as a new classifier.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | Sequence[str] | None = None
    train: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("targets", "train"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
        if self.r < 1:
            raise ConfigError(f"lora.r={self.r}: a rank is a whole number of at least 1")
        if not self.alpha > 0:
            raise ConfigError(f"lora.alpha={self.alpha}: it must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout}: a share in [0, 1) of an adapter's inputs")
        if self.targets is not None and not self.targets:
            raise ConfigError("lora.targets=[]: no module would get an adapter; name some, or leave it out")


@checks_types(only=("model",))
@checks_types("lora.", leave=("model",))
def lora(
    model: nn.Module,
    r: int = 8,
    *,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: str | Sequence[str] | None = None,
    train: str | Sequence[str] = (),
) -> nn.Module:
    """Returns a copy of a model with adapters, of which only these (and the modules `train`) are trained.

    Modules keep their names; a target `query` has its own weight as `query.base_layer`. Arguments are as in `Lora`. The
    adapters' first values are drawn from torch's generator (`torch.manual_seed`), A at random and B zero, so that the
    model begins as it was. ConfigError for wrong values, names that the model has not, and without peft.
    """
    return with_adapters(copy.deepcopy(model), Lora(r, alpha, dropout, targets, train))


def with_adapters(model: nn.Module, options: Lora) -> nn.Module:
    """Put adapters into a model, as `lora` does into a copy."""
    with _needs_peft("lora"):
        import peft
    if has_adapters(model):
        raise ConfigError("lora: the model has adapters already; give lora the bare model, or leave it out")
    names = [name for name, _ in model.named_modules()]
    for name in options.train:
        if name not in names:
            raise ConfigError(f"lora.train: the model has no module '{name}'; there are: {_some(names)}")
    linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if _is_target(m)})
    for name in options.targets or ():
        if not any(f".{known}".endswith(f".{name}") for known in names if known):
            raise ConfigError(f"lora.targets: no module's name ends with '{name}'; those that may: {_some(linear)}")
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=None if options.targets is None else list(options.targets),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # it sets that right by itself
        try:
            model = peft.inject_adapter_in_model(config, model)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"lora: peft puts no adapters into {type(model).__name__} ({said}); name lora.targets: {_some(linear)}"
            ) from None
    for name in options.train:
        model.get_submodule(name).requires_grad_(True)
    return model


def has_adapters(model: nn.Module) -> bool:
    """Returns whether a model has adapters of peft's LoRA."""
    return any(_MARK in name for name, _ in model.named_parameters())


@checks_types()
def merged(model: nn.Module) -> nn.Module:
    """Returns a copy of a model whose adapters are added into its weights: a plain model, with the keys it had first.

    ConfigError for a model without adapters.
    """
    if not has_adapters(model):
        raise ConfigError("the model has no adapters, so there is nothing to merge")
    with _needs_peft("merged"):
        from peft.tuners.lora import LoraLayer
    model = copy.deepcopy(model)
    if hasattr(model, "merge_and_unload"):  # a PeftModel
        return model.merge_and_unload(safe_merge=True).requires_grad_(True)  # type: ignore[operator]
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, module.get_base_layer())
    for table in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(table, None)
    return model.requires_grad_(True)


@checks_types()
def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write a model's adapters as `peft.PeftModel.from_pretrained(base, folder)` reads them, and what else was trained.

    ConfigError for a model without adapters.
    """
    if not has_adapters(model):
        raise ConfigError("the model has no adapters, so there are none to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = adapter_config(model)
    others = {name.removeprefix(_PREFIX).rpartition(".")[0] for name, _ in _also_trained(model)}
    config["modules_to_save"] = sorted(others) or None
    save_tensors(folder / "adapter_model.safetensors", adapter_tensors(model))
    write_json(folder / "adapter_config.json", config)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns what is trained of a model with adapters, by the keys of peft's files."""
    adapters = {n: p for n, p in model.named_parameters() if _MARK in n}
    named = {n.replace(f".{_ADAPTER}.", "."): p for n, p in adapters.items()} | dict(_also_trained(model))
    return {f"{_PREFIX}{n.removeprefix(_PREFIX)}": p.detach().contiguous() for n, p in named.items()}


def adapter_config(model: nn.Module) -> dict[str, Any]:
    """Returns the configuration of a model's adapters as peft writes it, as JSON values."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if _ADAPTER not in configs:
        raise ConfigError(
            f"the model's adapters are {', '.join(configs) or 'without a configuration'}; use one, default"
        )
    found = {key: _plain(value) for key, value in configs[_ADAPTER].to_dict().items()}
    return found | {"inference_mode": True}


def _also_trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and _MARK not in name:
            yield name.replace(f".modules_to_save.{_ADAPTER}.", "."), parameter  # as a PeftModel wraps such a module


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)  # an enumeration's text


def _is_target(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d) or type(module).__name__ == "Conv1D"


def _some(names: Sequence[str]) -> str:
    known = [name for name in names if name]
    return ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")


@contextmanager
def _needs_peft(what: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise ConfigError(f"{what}: peft is not installed; pip install 'fsl-flower[lora]', or leave it out") from None
