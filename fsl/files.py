"""Files are written whole or not at all."""

import json
import math
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from fsl.errors import CheckpointError

_UNFINISHED = ".tmp"  # the end of the name of a file that is being written
_HEADER = 100_000_000  # bytes of a safetensors file's header at most, which is that format's limit


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Says which file the system's error is about, where it does not say so: a full disk tells of no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(
    path: Path, data: bytes, durable: bool = True, private: bool = False, spare: Path | None = None
) -> None:
    """Write a file atomically: a reader sees the old content or the new, also after a full disk or a kill.

    Raises OSError where it cannot be written, and names it; the old content is then still there. With `durable=False` a
    power failure may still take the new content, until `sync` is called. A `private` file only its owner may read.
    `spare`: a file in the same folder that nobody needs, which becomes this one: some file systems take half a
    millisecond to make one, and a fiftieth of that to write over one.
    """
    with _replacing(path) as temporary:
        # Not by tempfile: that makes files which only their owner may read, and results are to be shared.
        if spare is not None:
            os.replace(spare, temporary)
        with (
            naming(path),
            open(temporary, "xb" if spare is None else "r+b", opener=_private if private else None) as file,
        ):
            file.write(data)
            file.truncate()
            if durable:
                file.flush()
                os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Lends a name beside the target, and renames what was written there; deletes it where that failed."""
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def discard_unfinished(folder: Path) -> None:
    """Delete files in a folder that somebody began to write and was killed; nobody may write into it meanwhile."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Beside the target, since a rename is atomic only within a file system; cut, since 255 bytes are the limit."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}{_UNFINISHED}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # from its first byte on


def sync(paths: Iterable[Path]) -> None:
    """Wait until files lie on the disk. Side by side, for each wait alone would cost a commit of the file system."""
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write text atomically, in UTF-8; `private` as in `write_bytes`."""
    write_bytes(path, text.encode(), private=private)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as every reader understands it: what is no finite number becomes null; NumPy and torch values are fine."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write_json(path: Path, obj: Any, private: bool = False) -> None:
    """Write a JSON file atomically; `private` as in `write_bytes`."""
    write_text(path, to_json(obj, indent=2) + "\n", private)


def save_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
    private: bool = False,
) -> None:
    """Write named tensors as a safetensors file, atomically; tensors may share memory, and lie on any torch device.

    `durable` and `private` as in `write_bytes`.
    """
    write_bytes(path, tensor_bytes(tensors, metadata), durable, private)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], durable: bool) -> None:
    """Write like `save_tensors` a file that only its owner may read, from the tensors' own memory, for large ones.

    Raises OSError where it cannot be written; the old content is then still there.
    """
    with _replacing(path) as temporary:
        os.close(_private(str(temporary), os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the library keeps its mode
        try:
            save_file(_separate(tensors), temporary, dict(metadata))
        except SafetensorError as error:
            raise _system_error(error, path) from None
        if durable:
            _sync(temporary)


def _system_error(error: SafetensorError, path: Path) -> Exception:
    """Returns the OSError that a library in another language met, which tells only its number."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return error if number is None else OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `save_tensors` writes."""
    return save(_separate(tensors), dict(metadata) if metadata else None)


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """What `tensor_bytes` was given; CheckpointError in one line where it is damaged."""
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"these are no tensors ({type(error).__name__}: {error})") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; CheckpointError in one line where it is missing or damaged."""
    return tensors_in(read_bytes(path), path)


def tensors_in(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that was read; CheckpointError in one line where it is damaged."""
    try:
        return load(data)
    except KeyError as error:
        raise CheckpointError(f"{path} holds tensors of type {error}, which torch cannot read; use another") from None
    except (SafetensorError, ValueError) as error:
        raise _unreadable(path, error) from None


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Like `load_tensors`, but reads what is used when it is used; who writes into a tensor changes no file.

    For files that are replaced, or deleted, and never written into.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError):
        return load_tensors(path)  # which says what is wrong


def load_metadata(path: Path) -> dict[str, str]:
    """What `save_tensors` was given as metadata; CheckpointError in one line where the file is missing or damaged."""
    data = read_bytes(path)
    try:
        return metadata_of(data)
    except ValueError as error:
        raise _unreadable(path, error) from None


def read_metadata(path: Path) -> dict[str, str]:
    """Like `load_metadata`, from the file's first bytes: empty where these are damaged; OSError where it is missing."""
    with open(path, "rb") as file:
        first = file.read(8)
        try:
            (size,) = struct.unpack("<Q", first)
            return metadata_of(first + file.read(min(size, _HEADER)))
        except (struct.error, ValueError):
            return {}


def metadata_of(data: bytes) -> dict[str, str]:
    """What `tensor_bytes` was given as metadata; ValueError where the header that holds it is damaged."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        if size > len(data) - 8:
            raise ValueError("it is cut short")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        return {str(key): str(value) for key, value in metadata.items()}
    except (struct.error, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory: safetensors refuses those. Copies only what it must."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def read_bytes(path: Path) -> bytes:
    """The content of a file of tensors; CheckpointError in one line where it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}; give the path of a safetensors file") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())
    return CheckpointError(f"{path} is no readable safetensors file ({reason}); restore it, or use another")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
