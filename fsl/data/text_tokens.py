"""Loads tokenizers of Hugging Face, and turns texts into ids."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsl.data.table_files import listed
from fsl.errors import DataError
from fsl.models.hub import place_of, quiet, transformers


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer, and what tells it from others: the same on every machine."""

    own: Any
    digest: str

    @staticmethod
    def load(pretrained: str | Path | None) -> "Tokenizer":
        """Load by a folder, or by a name on the Hub; DataError, in one line, where there is none."""
        if pretrained is None:
            raise DataError("data.tokenizer must be given: a folder with a tokenizer, or its name on the Hub")
        library = transformers(f"data.tokenizer={pretrained}")
        place = place_of(pretrained, "data.tokenizer")
        try:
            with quiet(library):
                own = library.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:
            line = " ".join(str(error).split())[:200]
            raise DataError(
                f"data.tokenizer={pretrained} cannot be loaded ({line}); give a folder with tokenizer.json, or a "
                "name on the Hub"
            ) from None
        digest = _digest(own)
        own.padding_side = "right"
        if own.pad_token is None:
            if own.eos_token is None:
                raise DataError(
                    f"data.tokenizer={pretrained}: it has no token for padding; set its pad_token and save it"
                )
            own.pad_token = own.eos_token
        return Tokenizer(own, digest)

    def longest(self, texts: Sequence[Sequence[str]], most: int) -> int:
        """Returns how many tokens the longest row has, at most `most`."""
        return max(map(len, self._ids(texts, max_length=most, padding=False)["input_ids"]))

    def columns(self, texts: Sequence[Sequence[str]], length: int, where: str) -> dict[str, np.ndarray]:
        """Returns ids, mask, and for pairs of texts which is which, int64 (N, length); `texts` are one column or two.

        DataError for a row without a token.
        """
        found = self._ids(texts, max_length=length, padding="max_length", return_tensors="np")
        kept = ["input_ids", "attention_mask", *(["token_type_ids"] if len(texts) > 1 else [])]
        columns = {name: np.asarray(found[name], dtype=np.int64) for name in kept if name in found}
        empty = np.flatnonzero(columns["attention_mask"].sum(1) == 0)
        if len(empty):
            raise DataError(f"{where}: the text of row {empty[0]} has no token; leave out rows without text")
        return columns

    def _ids(self, texts: Sequence[Sequence[str]], **options: Any) -> Any:
        given = list(map(list, texts))
        return self.own(*given, truncation=True, return_attention_mask=True, **options)


def _digest(own: Any) -> str:
    fast = getattr(own, "backend_tokenizer", None)
    said = fast.to_str() if fast is not None else json.dumps(sorted(own.get_vocab().items()))
    return hashlib.sha256(f"{said} {own.all_special_tokens} {own.all_special_ids}".encode()).hexdigest()[:16]


def refuse_other(known: dict[str, Any], own: dict[str, Any], where: str) -> None:
    """Raise DataError where these data were prepared in another way than the run's."""
    if other := [name for name in known if known[name] != own.get(name)]:
        shown = listed([f"{name} {own.get(name)} and {known[name]}" for name in other])
        shown = listed([f"{name} {own.get(name)} and {known[name]}" for name in other])
        raise DataError(
            f"{where}: these data are prepared in another way than the run's ({shown}); use the run's tokenizer "
            "(data-tokenizer in a node's configuration), columns and files"
        )
