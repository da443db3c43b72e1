"""What a session tells its codecs, what these remember, and what their arrays that hold nothing count."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fsl.codecs import Codec, Int4, Int8, Payload, pack
from fsl.codecs.codec import CodecCall
from fsl.codecs.codec_choice import codec_spec
from fsl.codecs.codec_maker import codec_of
from fsl.codecs.cut_codec import CutCodec
from fsl.costs.forecast import step_bytes
from fsl.errors import WireError
from fsl.messages.frames import upload_bytes
from fsl.messages.round_plan import DeviceTask
from fsl.round.coded_cuts import CodedCut
from fsl.round.device_side import DeviceSide
from fsl.seeds import Stream
from tests.helpers.lowlevel import a_plan, a_worker


class Counted(Codec):
    """Adds to values how often it has encoded; both halves could tell from its state."""

    name = "counted"
    stateful = True

    def __init__(self):
        self._calls = 0

    def encode(self, values):
        """Returns values, each larger by the number of calls before."""
        self._calls += 1
        return pack(self.name, values.dtype, ("values", values + (self._calls - 1)))

    def decode(self, payload):
        """Returns what went in, as an end that counts for itself."""
        self._calls += 1
        return payload.arrays[0][1] - (self._calls - 1)

    def state(self):
        """Returns the number of calls."""
        return {"calls": torch.tensor(self._calls)}

    def resume(self, state):
        """Go on counting from there."""
        self._calls = int(state["calls"])


def test_a_device_that_goes_back_to_a_copy_has_its_codecs_state(tmp_path):
    plan = replace(a_plan(), up=codec_spec("codec.up", Counted))
    worker = a_worker(tmp_path)
    states = {name: segment.layout.capture() for name, segment in worker.segments.items()}
    worker.workload = replace(worker.workload, allowed=(*worker.workload.allowed, "tests"))
    side = DeviceSide([DeviceTask(device=0)], plan, worker, states)
    device = side.open(0)
    device.forward()
    copy, second = side.copy(device), device.forward()
    side.abandon(device)
    again = side.restore(0, copy).forward()
    assert torch.equal(dict(again.smashed.arrays)["values"], dict(second.smashed.arrays)["values"])


def test_each_codec_of_a_chain_draws_numbers_of_its_own():
    chain = codec_of(codec_spec("codec.up", [Int8(stochastic=True), "fsl.codecs.Rans"]))
    chain.at(CodecCall(Stream(3, "codec"), 5))
    first, second = (stage.generator().initial_seed() for stage in chain.stages)
    assert first != second
    assert chain.at(CodecCall(Stream(3, "codec"), 6)).stages[0].generator().initial_seed() != first


@pytest.mark.parametrize("rows", [3, 9])
def test_arrays_that_tell_a_shape_count_no_rows(rows):
    """Where a batch's size is private, bytes are reported as of a public one."""
    payload = Int4(per="sample").encode(torch.randn(rows, 8, 4, 4))
    assert upload_bytes(payload, None, rows=5) == upload_bytes(Int4(per="sample").encode(torch.randn(5, 8, 4, 4)), None)


def test_an_evaluation_gives_a_codec_that_couples_rows_a_batch_at_once():
    values = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13).view(-1, 1)
    found = CodedCut(partial(CutCodec, Int8), 5, frozenset())(values)
    wanted = torch.cat([Int8().decode(Int8().encode(part)) for part in values.split(5)])
    assert torch.equal(found, wanted)
    assert not torch.equal(found, Int8().decode(Int8().encode(values)))


def test_in_an_evaluation_each_end_remembers_its_own_calls():
    values = torch.arange(12.0).view(6, 2)
    cut = CodedCut(partial(CutCodec, Counted), 2, frozenset())
    assert torch.equal(cut(values), values)
    assert torch.equal(cut(values), values)


def test_a_payload_without_a_shape_is_refused_where_one_is_read():
    with pytest.raises(WireError, match="tells no shape of its values"):
        _ = Payload("c", (("values", torch.zeros(2)),)).shape


class Numbered(Codec):
    """Values as they are behind the number of the call: a half that encodes and decodes counts both."""

    name = "numbered"
    stateful = True

    def __init__(self):
        self.calls = 0

    def encode(self, values):
        """Returns values and the call's number."""
        self.calls += 1
        return Payload(self.name, (("number", torch.tensor([self.calls])), ("values", values)))

    def decode(self, payload):
        """Returns values whose number is the next."""
        number, values = payload.unpack(self.name, number=torch.int64, values=torch.float32)
        self.calls += 1
        assert int(number) == self.calls
        return values


def test_bytes_of_a_codec_that_remembers_are_those_of_two_halves():
    up, down = (codec_spec(f"codec.{way}", Numbered) for way in ("up", "down"))
    sent, heard = step_bytes([torch.zeros(1, 4)], torch.zeros(1, dtype=torch.int64), 8, up, down)
    assert sent > 8 * 4 * 4 < heard
