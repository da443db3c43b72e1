"""One device of a separable network at work: it holds its groups of channels, and exchanges maps with its peers."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from torch import Tensor

from fsl.argument_types import checks_types
from fsl.errors import ConfigError, FslError, RunError, WireError
from fsl.inference.separable.device_folders import SeparablePart
from fsl.inference.separable.group_door import GroupDoor
from fsl.inference.separable.group_inbox import GroupEndError, GroupInbox
from fsl.inference.separable.group_part import Leaving, gathered, summed
from fsl.inference.separable.group_records import GroupCounts, GroupStages, GroupValues, maps_record
from fsl.inference.separable.group_terms import GroupTerms
from fsl.inference.separable.separable_model import advanced
from fsl.inference.serving.loopback import refuse_open, refuse_unencrypted
from fsl.wire.loop import NetworkThread
from fsl.wire.options import Certificates, Limits
from fsl.wire.tls import TlsContexts


class SeparableDevice:
    """One of the devices of a separable network; what it is entered into ends it.

    Device 0 has the images and asks (`answer`); the others `serve`. `listen`: host:port, port 0 for a free one.
    `certificates`: for TLS, both for those who come and for those that it reaches; without, only on this machine.
    `token` and `token_keys`: what an operator signed for this device (`sign_part`), and whose signatures count
    of others. `patience`: seconds for any maps to come. `rows`: images of a request, at most. A device that is late,
    gone, or sends what it may not, ends the work of all, each with one line that names it. One request at a time.
    """

    @checks_types()
    def __init__(
        self,
        part: SeparablePart,
        *,
        listen: str = "127.0.0.1:0",
        certificates: Certificates | None = None,
        token: bytes = b"",
        token_keys: Sequence[Ed25519PublicKey] | None = None,
        patience: float = 10.0,
        rows: int = 256,
        limits: Limits | None = None,
    ) -> None:
        refuse_open("listen", listen, certificates, token_keys)
        if not patience > 0 or rows < 1:
            raise ConfigError(f"patience={patience}, rows={rows}: seconds above 0, and at least one row")
        self.device, self.devices = part.group.device, part.group.gates.devices
        self.counts = GroupCounts()
        self._part, self._patience, self._rows = part.group, patience, rows
        self._tls = certificates is not None
        self._stages = GroupStages(part.group.plan, part.dtype)
        self._inbox = GroupInbox(self._stages, part.group.gates, self.device)
        self._request = 0
        self._closed = False
        terms = GroupTerms(digest=part.digest, device=self.device, devices=self.devices, token=token, keys=token_keys)
        own = None if certificates is None else TlsContexts(certificates.edge_files(), server=True)
        others = None if certificates is None else TlsContexts(certificates.device_files(), server=False)
        self._network = NetworkThread(f"separable-{self.device}")
        self._door = GroupDoor(terms, self._stages, rows, self, limits or Limits())
        try:
            self.address = self._network.run(self._door.listen(listen, own, others))
        except BaseException:
            self.close()
            raise

    @checks_types()
    def connect(self, peers: Mapping[int, str], seconds: float = 10.0) -> None:
        """Meet all others: `peers` has the addresses of those of lower number, by number; the rest come here.

        RunError for one that is absent after so many seconds, WireError for one that has another network or version.
        """
        if missing := [peer for peer in range(self.device) if peer not in peers]:
            raise ConfigError(f"peers: device {self.device} needs the address of device {missing[0]}")
        if not self._tls:
            for peer in range(self.device):
                refuse_unencrypted(peers[peer])
        try:
            self._network.run(self._door.connect(peers, seconds), seconds + 30)
        except Exception as error:
            self._stop(str(error))
            raise

    @checks_types()
    def answer(self, images: Tensor) -> Tensor:
        """Returns the outputs (B, classes) that all devices compute together of images (B, C, H, W); of device 0.

        RunError or WireError, with all streams ended, where a device is late, gone, or sends what it may not.
        """
        if self.device:
            raise ConfigError(f"device {self.device} has no images; ask device 0")
        if images.shape[1:] != self._stages.plan.input_shape or not 1 <= len(images) <= self._rows:
            raise ConfigError(
                f"images of shape {tuple(images.shape)}: give (1 to {self._rows}, "
                f"{', '.join(map(str, self._stages.plan.input_shape))})"
            )
        if images.dtype != self._stages.dtype:
            raise ConfigError(f"images are {images.dtype}, and the network computes in {self._stages.dtype}")
        self._request += 1
        with self._ending():
            self._inbox.begin(self._request)
            self._send(0, range(1, self.devices), images)
            partial = self._computed(images)
            others = self._inbox.take(self._stages.last, range(1, self.devices), self._patience)
            return summed([partial, *(_of_rows(others[k], len(images), k) for k in range(1, self.devices))])

    @checks_types()
    def serve(self, idle_seconds: float = 600.0, requests: int | None = None) -> int:
        """Compute for device 0 until it ends, or so many requests; returns how many. Not of device 0.

        RunError where nothing is asked for `idle_seconds`, and as `answer`.
        """
        if not self.device:
            raise ConfigError("device 0 asks, and does not serve; call answer")
        done = 0
        while requests is None or done < requests:
            with self._ending():
                try:
                    self._request, images = self._inbox.take_next(idle_seconds)
                except GroupEndError:
                    return done
                self._send(self._stages.last, [0], self._computed(images))
            done += 1
        return done

    def close(self) -> None:
        """End all streams in order."""
        self._stop("")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop("" if error is None else f"device {self.device} ended: {type(error).__name__}")

    # What the network thread tells.

    def came(self, sender: int, one: GroupValues) -> None:
        """Take maps of another device."""
        self._inbox.put(sender, one)

    def left(self, sender: int, why: FslError) -> None:
        """Hear that another device's stream has ended."""
        self._inbox.end(why)
        self._door.end_waiting(why)

    # Computing.

    def _computed(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            course = self._part.course(images)
            found = advanced(course, None)
            while isinstance(found, Leaving):
                gates, block = self._part.gates, found.block
                self._send(block + 1, gates.receivers(block, self.device), found.maps)
                senders = gates.senders(block, self.device)
                others = self._inbox.take(block + 1, [i for i in senders if i != self.device], self._patience)
                others = {i: _of_rows(maps, len(images), i) for i, maps in others.items()}
                found = advanced(course, gathered(found.maps, self.device, others, senders))
            return found

    def _send(self, stage: int, receivers: Sequence[int] | range, values: Tensor) -> None:
        if not receivers:
            return
        data = maps_record(self._request, stage, values)
        self.counts.values[stage] = self.counts.values.get(stage, 0) + len(receivers) * values.nbytes
        self.counts.records += len(receivers) * len(data)
        self._network.call(self._door.send, tuple(receivers), data)

    def _ending(self) -> "_Ending":
        return _Ending(self)

    def _stop(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._inbox.end(RunError(f"device {self.device} has ended{f': {reason}' if reason else ''}"))
        try:
            self._network.run(self._door.stop(reason))
        finally:
            self._network.close()


class _Ending:
    """Ends a device's streams, saying why, where what is done within fails."""

    def __init__(self, device: SeparableDevice) -> None:
        self._device = device

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._device._stop(f"{error}" if isinstance(error, RunError | WireError) else type(error).__name__)


def _of_rows(maps: Tensor, rows: int, sender: int) -> Tensor:
    if len(maps) != rows:
        raise WireError(f"device {sender} sent maps of {len(maps)} rows, and the request has {rows}")
    return maps
