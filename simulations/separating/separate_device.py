"""`fsl-separate device` and `fsl-separate token`: one device of a separable network on its own machine."""

import time
from collections.abc import Sequence
from statistics import median

import torch
from fsl.simulations.endings import tell
from fsl.simulations.fsl_export import read_trained_run
from fsl.simulations.serving.serve_options import ServeOptions
from fsl.simulations.serving.serve_tokens import read_token

from fsl.errors import ConfigError
from fsl.files import write_text
from fsl.inference.separable import SeparableDevice, load_device, sign_part
from fsl.inference.serving.serving_tokens import load_operator_key, load_operator_public_key
from fsl.inference.serving.thread_turns import short_turns

DEVICE_OPTIONS = (
    *("folder", "address", "peers", "run", "rows", "count", "connect", "patience", "idle", "threads", "allow"),
    *("ca", "cert", "cert-key", "token", "token-key", "insecure"),
)
TOKEN_OPTIONS = ("key", "folder", "days", "out")
_DAY = 86400.0


def separate_device(arguments: Sequence[str]) -> None:
    """Run one device until device 0 ends; device 0 asks for rows of a run's data and ends."""
    options = ServeOptions(arguments, DEVICE_OPTIONS)
    for name in ("folder", "address"):
        if not options.has(name):
            raise ConfigError(f"{name} must be given; see fsl-separate --help")
    part = load_device(options.path("folder"), allowed=options.texts("allow"))
    number, peers = part.group.device, options.texts("peers")
    if len(peers) != number:
        raise ConfigError(f"peers: device {number} needs the addresses of the {number} below it, and has {len(peers)}")
    if (number == 0) != options.has("run"):
        raise ConfigError("run: device 0, and no other, needs a run whose data it asks for")
    certificates = options.certificates({"ca": "ca", "certificate": "cert", "key": "cert-key"})
    keys = [load_operator_public_key(options.path("token-key"))] if options.has("token-key") else None
    torch.set_num_threads(options.whole("threads", 1, 1) or 1)
    rows = options.whole("rows", 16, 1) or 16
    with (
        short_turns(),
        SeparableDevice(
            part,
            listen=options.text("address"),
            certificates=certificates,
            token=read_token(options.path("token")) if options.has("token") else b"",
            token_keys=keys,
            patience=options.number("patience", 10.0) or 10.0,
            rows=rows if number == 0 else options.whole("rows", 256, 1) or 256,
        ) as device,
    ):
        tell(f"device {number} of {device.devices} ({part.digest[:12]}) at {device.address}")
        device.connect(dict(enumerate(peers)), options.number("connect", 60.0) or 60.0)
        if number:
            tell(f"requests: {device.serve(options.number('idle', 600.0) or 600.0)}")
        else:
            _ask(device, options, rows)


def _ask(device: SeparableDevice, options: ServeOptions, rows: int) -> None:
    """Ask for rows of a run's test data, and say accuracy and latency."""
    data = read_trained_run(options.path("run")).data
    examples = (data.test or data.train).of_one_length()
    seconds, right, asked = [], 0, 0
    for request in range(options.whole("count", 20, 1) or 20):
        places = (torch.arange(rows) + request * rows) % len(examples)
        images, targets = examples.batch(places)
        began = time.perf_counter()
        outputs = device.answer(images)
        seconds.append(time.perf_counter() - began)
        right, asked = right + int((outputs.argmax(1) == targets).sum()), asked + rows
    tell(f"{asked} rows, {right / asked:.4f} right; {1e3 * median(seconds):.1f} ms for {rows} (median)")
    tell(f"sent: {device.counts.value_bytes} bytes of values, {device.counts.records} with headers")


def separate_token(arguments: Sequence[str]) -> None:
    """Write a device's token into a file; `fsl-serve key` makes the operator's keys."""
    options = ServeOptions(arguments, TOKEN_OPTIONS)
    for name in ("key", "folder"):
        if not options.has(name):
            raise ConfigError(f"{name} must be given; see fsl-separate --help")
    key, part = load_operator_key(options.path("key")), load_device(options.path("folder"))
    days = options.number("days", 30.0) or 30.0
    token = sign_part(key, device=part.group.device, digest=part.digest, expires=time.time() + days * _DAY)
    path = options.path("out", f"device{part.group.device}.token")
    if path.exists():
        raise ConfigError(f"out={path}: it is there already; name another file")
    write_text(path, token.hex() + "\n", private=True)
    tell(f"{path}: lets device {part.group.device} take part for {days:g} days; give it to that device alone")
