"""What counts a node's work, part by part."""

from dataclasses import dataclass, field

from fsl.wire.device.device_meter import DeviceMeter
from fsl.wire.edge.meter import EdgeMeter
from fsl.wire.line.line_meter import LineMeter


@dataclass(frozen=True)
class Meters:
    """A node's meters, which by default count nothing: of its edge, its devices, and its line to the cloud."""

    edge: EdgeMeter = field(default_factory=EdgeMeter)
    devices: DeviceMeter = field(default_factory=DeviceMeter)
    line: LineMeter = field(default_factory=LineMeter)
