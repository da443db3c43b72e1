"""What a demonstration is to be, from the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsl.simulations.serving.demo_links import demo_trace, from_second, with_tunnel
from fsl.simulations.serving.serve_options import ServeOptions

from fsl.errors import ConfigError
from fsl.inference.planning import RateTrace

DEMO_OPTIONS = (
    *("run", "points", "seconds", "page", "links", "rows", "rate", "speed", "delay", "deadline", "tunnel", "lean"),
)
_MOST_LINKS = 6
_SHIFT = 20.0  # seconds of its trace at which the second device begins, the third twice as many, and so on
_TUNNEL = (0.25, 0.05)  # when the first device's tunnel begins, and how long it is, as shares of all seconds


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """A demonstration of so many `seconds`: a device for each of `links`, which asks the model of the run in `folder`.

    `rows` of a question, `rate` questions a second at most, `deadline` seconds for an answer. `speed`: multiply-adds a
    second of a device. `delay` of a link each way, and the seconds of the first one's `tunnel`.
    """

    folder: Path
    points: str
    seconds: float
    page: str
    links: tuple[str, ...]
    rows: int
    rate: float
    speed: float
    delay: float
    deadline: float
    tunnel: float
    lean: bool

    @staticmethod
    def read(arguments: Sequence[str]) -> "DemoOptions":
        """Read a command line; ConfigError for what cannot be."""
        options = ServeOptions(arguments, DEMO_OPTIONS)

        def number(name: str, default: float, zero: bool = False) -> float:
            found = options.number(name, default, zero=zero)
            assert found is not None
            return found

        seconds = number("seconds", 60.0)
        found = DemoOptions(
            folder=options.path("run", "outputs/demo-inference"),
            points=options.text("points", "all"),
            seconds=seconds,
            page=options.text("page", "127.0.0.1:8050"),
            links=tuple(options.texts("links")) or ("lte", "5g"),
            rows=options.whole("rows", 64, 1) or 64,
            rate=number("rate", 8.0),
            speed=1e6 * number("speed", 140.0),
            delay=number("delay", 0.002, zero=True),
            deadline=number("deadline", 1.0),
            tunnel=number("tunnel", _TUNNEL[1] * seconds, zero=True),
            lean=not options.has("lean") or options.flag("lean"),
        )
        if len(found.links) > _MOST_LINKS:
            raise ConfigError(f"links={','.join(found.links)}: there is a device for each, and at most {_MOST_LINKS}")
        for number_of, _ in enumerate(found.links):
            found.trace(number_of)
        return found

    def trace(self, device: int) -> RateTrace:
        """Returns the rates of a device's link; ConfigError where nobody knows them."""
        found = from_second(demo_trace(self.links[device]), device * _SHIFT)
        return with_tunnel(found, _TUNNEL[0] * self.seconds, self.tunnel) if device == 0 else found

    @property
    def notes(self) -> tuple[str, ...]:
        """What is assumed, in words."""
        speed, delay = f"{self.speed / 1e6:g} million multiply-adds a second", f"{1e3 * self.delay:g} ms"
        tunnel = f"; the first one has a tunnel of {self.tunnel:g} s" if self.tunnel else ""
        return (
            f"Devices are slowed down: each layer takes as long as at {speed}. The edge is as quick as this machine.",
            f"A question has {self.rows} rows. A device asks at most {self.rate:g} a second, one after the other, and "
            f"computes the answer itself where none has come after {self.deadline:g} s.",
            "Links are TCP on this machine, slowed down as traces of rates tell (those that come with fsl are "
            f"synthetic), with {delay} of delay each way{tunnel}.",
        )
