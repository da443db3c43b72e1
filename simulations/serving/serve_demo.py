"""`fsl-serve demo`: an edge, two devices on links that change, and a page that shows what they do."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path

import torch
from fsl.simulations.endings import tell
from fsl.simulations.serving.asking_device import Asking, AskingDevice, choices_of
from fsl.simulations.serving.demo_edge import DemoEdge
from fsl.simulations.serving.demo_figures import ShownDemo, line_of, summary_of
from fsl.simulations.serving.demo_model import DemoModel, demo_model
from fsl.simulations.serving.demo_options import DemoOptions
from fsl.simulations.serving.page_server import PageServer
from fsl.simulations.serving.slow_device import slow_down

from fsl.inference import SplitPoints
from fsl.inference.links import ShapedLink
from fsl.inference.planning import DynamicSplit, Scouting, SplitCosts
from fsl.inference.planning.split_costs import IDENTITY
from fsl.inference.profiles import Encoding, measure
from fsl.inference.serving import InferenceDevice
from fsl.inference.serving.thread_turns import short_turns
from fsl.inference.split_points import INPUT, OUTPUT

_CODEC = "int8"
_INT8 = Encoding(factor=0.25, fixed_bytes=8)
_WITH_EXITS = 1  # the device that has them, from 0 on
_LOOK, _LINE = 0.5, 5.0  # seconds between two looks at links, and between two lines
_PAGE = "demo.html"


class DemoDevices:
    """The edge's devices and their links; what they are entered into ends them."""

    def __init__(self, options: DemoOptions, model: DemoModel, edges: Sequence[str]) -> None:
        self._options, self._model, self._edges = options, model, edges
        self.points = model.points(options.points)
        self.links: list[ShapedLink] = []
        self.devices: list[AskingDevice] = []
        self._costs = self._measured()

    def _measured(self) -> SplitCosts:
        options, examples = self._options, self._model.examples
        inputs, _ = examples.batch(torch.arange(options.rows) % len(examples))
        speed = f"{options.speed / 1e6:g} million multiply-adds a second, assumed"
        device = measure(self._slow_points(), inputs, repetitions=8, warm_up=1, checks=0, machine=speed)
        return SplitCosts(device=device, edge=measure(self.points, inputs, checks=0), codecs={_CODEC: _INT8})

    def _slow_points(self) -> SplitPoints:
        points = self._model.points(self._options.points)
        slow_down(points.model, self._options.speed)
        return points

    def enter(self, stack: ExitStack) -> None:
        """Begin all of them."""
        for number in range(len(self._options.links)):
            self._enter(stack, number)

    def _enter(self, stack: ExitStack, number: int) -> None:
        options, points = self._options, self._slow_points()
        name = Path(options.links[number]).stem
        link = stack.enter_context(ShapedLink(self._edges, options.trace(number), delay=options.delay))
        exits = self._model.exits(points) if number == _WITH_EXITS else None
        if exits is not None:
            slow_down(exits.model, options.speed)
        names = points.names if exits is None else (INPUT, *exits.model.exits, OUTPUT)
        policy = Scouting(DynamicSplit(self._costs, choices=choices_of(names, (IDENTITY, _CODEC))))
        device = stack.enter_context(
            InferenceDevice(points, [link.address], policy=policy, codecs=[_CODEC], exits=exits, lean=options.lean)
        )
        asking = Asking(
            examples=self._model.examples,
            objective=self._model.run.objective,
            rows=options.rows,
            rate=options.rate,
            deadline=options.deadline,
        )
        title = f"device {number + 1}" + (" (exits)" if exits is not None else "")
        found = AskingDevice(title, name, device, link, policy, asking)
        stack.callback(found.close)
        self.links.append(link)
        self.devices.append(found)

    def start(self, began: float) -> None:
        """Ask from now on."""
        for link in self.links:
            link.restart()
        for device in self.devices:
            device.start(began)


class Demo:
    """A demonstration from the page that waits until the last line."""

    def __init__(self, options: DemoOptions) -> None:
        self._options = options
        self._began = 0.0
        self._edge: DemoEdge | None = None
        self._all: DemoDevices | None = None

    def run(self) -> int:
        """Do all of it; returns 1 where a question was lost."""
        options, page = self._options, resources.files("fsl.simulations.serving").joinpath(_PAGE)
        with ExitStack() as stack:
            server = PageServer("page", options.page, page.read_text(encoding="utf-8"), self.shown)
            stack.enter_context(server)
            stack.enter_context(short_turns())
            torch.set_num_threads(1)
            model = demo_model(options.folder)
            edge = stack.enter_context(DemoEdge(options.folder, options.points))
            tell(edge.said)
            tell("measuring device and edge")
            edges = edge.addresses if options.lean else edge.addresses[:1]
            every = DemoDevices(options, model, edges)
            every.enter(stack)
            self._began = time.monotonic()
            self._edge, self._all = edge, every
            try:
                every.start(self._began)
                tell(f"the page is at {server.address} for {options.seconds:g} s; Ctrl-C ends all")
                self._watch(every)
            finally:
                lost = _ended(every)
        return 1 if lost else 0

    def _watch(self, every: DemoDevices) -> None:
        ends, line = self._began + self._options.seconds, self._began + _LINE
        while (now := time.monotonic()) < ends:
            for device in every.devices:
                device.look()
            if now >= line:
                line += _LINE
                for device in every.devices:
                    tell(line_of(device.shown(), now - self._began))
            time.sleep(max(0.0, min(_LOOK, ends - time.monotonic())))

    def shown(self) -> ShownDemo:
        """Returns what the page shows; any thread may call."""
        every, options = self._all, self._options
        return ShownDemo(
            title="Split inference" if every is None else f"Split inference of {type(every.points.model).__name__}",
            notes=options.notes,
            splits=() if every is None else every.points.names,
            second=0.0 if every is None else round(time.monotonic() - self._began, 2),
            seconds=options.seconds,
            edge_is_alive=self._edge is not None and self._edge.is_alive,
            devices=() if every is None else tuple(device.shown() for device in every.devices),
        )


def _ended(every: DemoDevices) -> int:
    """End the questions, say what became of them, and return how many have no answer."""
    for device in every.devices:
        device.close()
    shown = [device.shown() for device in every.devices]
    for device, told in zip(every.devices, shown, strict=True):
        tell(summary_of(told, device.milliseconds))
    lost = sum(told.lost for told in shown)
    tell(f"{sum(told.asked for told in shown)} questions, {lost or 'none'} lost")
    return lost


def serve_demo(arguments: Sequence[str]) -> int:
    """Run a demonstration; returns the exit code."""
    return Demo(DemoOptions.read(arguments)).run()
