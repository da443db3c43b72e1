"""Checkpoints: what `resume` needs to go on, bitwise as if the run had never stopped.

A checkpoint is complete when `state.json` names its round; the tensors of a round are written before, and what changed
of devices' generations is added to a journal. The checkpoint of the round before stays beside it (`previous.json`), for
when the newest is damaged; older ones are deleted.
"""

import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fsl.errors import CheckpointError
from fsl.files import load_tensors, tensor_bytes, to_json, write_bytes, write_text
from fsl.run.generation_journal import GenerationJournal, JournalEntry, read_journal, write_entry
from fsl.run.generations import GenerationsThen
from fsl.segments.finite import finite

log = logging.getLogger(__name__)

_FORMAT = 2
_FORMATS = (1, _FORMAT)  # that can be gone on from; the first had all generations in `state.json`
_NEWEST, _PREVIOUS = "state.json", "previous.json"
STRATEGY = "strategy/"  # before the name of a tensor that a strategy remembers


@dataclass(frozen=True)
class Checkpoint:
    """A run as of the end of a round. `tensors` are named `<segment>.<key>`."""

    round: int
    tensors: Mapping[str, Tensor]
    strategy: Mapping[str, Any]
    settings: Mapping[str, Any]  # what the result depends on
    best: Mapping[str, Any] | None = None
    label: Mapping[str, Any] | None = None  # the run's name and tags; None in those that were written without


class CheckpointWriter:
    """Writes checkpoints one at a time while the next round is computed: the disk's latency is not the run's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future[None], Callable[[], None]] | None = None
        self._journal = GenerationJournal()

    def write(self, checkpoint: Checkpoint, done: Callable[[], None]) -> None:
        """Begin to write a checkpoint, as things are now; `done` is called from here or `wait` when it is complete.

        Raises what went wrong with the one before.
        """
        self.wait()
        # Not by the thread: the next round changes what is in it.
        memories = {k: v for k, v in checkpoint.strategy.items() if isinstance(v, GenerationsThen)}
        entry = self._journal.entry(checkpoint.round, memories) if memories else None
        data = tensor_bytes(checkpoint.tensors), _stated(checkpoint)
        self._pending = self._thread.submit(_write, self.folder, checkpoint.round, *data, entry), done

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; raises what went wrong."""
        if self._pending is not None:
            (written, done), self._pending = self._pending, None
            written.result()
            done()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    state = {
        "format": _FORMAT,
        "round": checkpoint.round,
        "strategy": {k: v for k, v in checkpoint.strategy.items() if not isinstance(v, GenerationsThen)},
        "best": checkpoint.best,
        "settings": checkpoint.settings,
        "label": checkpoint.label,
    }
    return dict(json.loads(to_json(state)))


def _write(folder: Path, round: int, tensors: bytes, stated: dict[str, Any], entry: JournalEntry | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _model(round)
    newest = _named_round(folder / _NEWEST)
    write_bytes(path, tensors)
    if entry is not None:
        stated["generations"] = write_entry(folder, entry)
    # By a rename after a copy, each of which is there as a whole or not at all: one of both is always complete.
    if newest is not None and newest < round and (folder / _model(newest)).exists():
        write_text(folder / _PREVIOUS, (folder / _NEWEST).read_text())
    write_text(folder / _NEWEST, to_json(stated, indent=2) + "\n")
    wanted = {path.name, *(_model(r) for r in [_named_round(folder / _PREVIOUS)] if r is not None)}
    wanted |= {name for state in (_NEWEST, _PREVIOUS) if (name := _journal_of(folder / state)) is not None}
    for old in (*folder.glob("model.*.safetensors"), *folder.glob("generations.*.jsonl")):
        if old.name not in wanted:
            old.unlink(missing_ok=True)


def _model(round: int) -> str:
    return f"model.{round}.safetensors"


def _named_round(path: Path) -> int | None:
    """The round that a state file names; None where there is no such file, or it cannot be read."""
    try:
        round = json.loads(path.read_text())["round"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return round if isinstance(round, int) else None


def _journal_of(path: Path) -> str | None:
    """The journal that a state file names, where there is one and it can be read."""
    try:
        return str(json.loads(path.read_text())["generations"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def versions_before(folder: Path) -> dict[str, int]:
    """Returns what the checkpoint before the newest says of owners' generations; nothing where it cannot be read."""
    try:
        state = json.loads((folder / _PREVIOUS).read_text())
        memories = read_journal(folder, state["generations"])
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return {}
    return memories.get("versions", {})


def load_checkpoint(folder: Path) -> Checkpoint:
    """The newest checkpoint in a folder that can be gone on from: where that is the one before, a line says so.

    CheckpointError in one line if there is none, or the newest and the one before are damaged or not finite.
    """
    try:
        return _load(folder, folder / _NEWEST)
    except CheckpointError as error:
        if not (folder / _PREVIOUS).exists():
            raise
        try:
            found = _load(folder, folder / _PREVIOUS)
        except CheckpointError as before:
            raise CheckpointError(f"{error}; nor can the one before it be gone on from: {before}") from None
        log.warning("resume=%s: %s; it goes on from the checkpoint of round %d", folder.parent, error, found.round)
        return found


def _load(folder: Path, path: Path) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint in {folder.parent}: resume=<folder> takes the folder of a run that finished at "
            "least one round"
        )
    try:
        state = json.loads(path.read_text())
        if state["format"] not in _FORMATS:
            raise CheckpointError(
                f"{path} has format {state['format']}; this version of fsl reads format {_FORMATS[0]} and {_FORMATS[1]}"
            )
        round, strategy, settings, best = (state[key] for key in ("round", "strategy", "settings", "best"))
        if not isinstance(round, int) or not isinstance(strategy, dict) or not isinstance(settings, dict):
            raise TypeError("a field has the wrong type")
        label = state.get("label")
        if not isinstance(label, dict | None) or not isinstance((label or {}).get("tags", {}), dict):
            raise TypeError("its label has the wrong type")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or start a new run without resume") from None
    if "generations" in state:
        strategy |= read_journal(folder, state["generations"])
    tensors = load_tensors(folder / _model(round))
    if bad := next((name for name, tensor in tensors.items() if not _can_go_on(name, tensor)), None):
        raise CheckpointError(
            f"{folder / _model(round)}: tensor '{bad}' is not finite, and nothing can be trained from it; restore an "
            "older one, or start a new run without resume"
        )
    return Checkpoint(round, tensors, strategy, settings, best, label)


def _can_go_on(name: str, tensor: Tensor) -> bool:
    """Of the model's; what a strategy remembers beside it may well be infinite."""
    return name.startswith(STRATEGY) or finite([tensor])


def refuse_other_settings(then: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """A run goes on only with the settings it began with; names the first that differs."""
    now = json.loads(json.dumps(now))
    if then.get("code") != now.get("code"):
        log.warning(
            "resume=%s: the code of your own classes (model, strategy, trainer, codec) has changed since that run "
            "began; it goes on with the code as it is now",
            folder,
        )
    for key in sorted({*then, *now} - {"code"}):
        if then.get(key) != now.get(key):
            before, after = (repr(one[key]) if key in one else "none" for one in (then, now))
            raise CheckpointError(
                f"resume={folder}: that run has {key}={before}, this one {after}; resume with equal settings "
                "(nodes and backend may differ, but for engines that round), or start a new run"
            )
