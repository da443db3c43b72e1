"""The page of a demonstration: served to this machine alone, and drawn in a browser."""

import base64
import hashlib
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from importlib import resources

import pytest
from fsl.simulations.serving.demo_figures import SeenAnswer, SeenLink, ShownDemo, ShownDevice
from fsl.simulations.serving.page_server import PageServer

from fsl.errors import ConfigError
from tests.helpers.browser import chromium, shown_document

PAGE = resources.files("fsl.simulations.serving").joinpath("demo.html").read_text(encoding="utf-8")
SPLITS = ("input", "pool1", "output")
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"


def device(name: str = "device 1") -> ShownDevice:
    times = [second / 8 for second in range(480)]
    kinds = ("edge", "device", "fallback")
    return ShownDevice(
        name=name,
        link="lte",
        asked=480,
        at_edge=400,
        on_device=80,
        lost=0,
        exits={"pool1": 7000, "output": 23720},
        fallbacks={"late": 3},
        switches=4,
        split="pool1 by int8",
        mbit=12.345,
        estimated=9.87,
        p50_ms=21.3,
        p99_ms=1234.0,
        predicted_ms=20.0,
        accuracy=0.94,
        answers=tuple(SeenAnswer(at, 5 + 50 * at, kinds[int(at) % 3]) for at in times),
        links=tuple(
            SeenLink(at, at % 20, None if at < 5 else at, ("input", "pool1 by int8", "output")[int(at) // 7 % 3])
            for at in times[::4]
        ),
    )


SHOWN = ShownDemo(
    title="Split inference of LeNet",
    notes=("Devices are slowed down.",),
    splits=SPLITS,
    second=60.0,
    seconds=90.0,
    edge_is_alive=True,
    devices=(device(), replace(device("device 2 (exits)"), fallbacks={}, links=(), answers=(), p50_ms=None)),
)


def asked(address: str, method: str = "GET", host: str | None = None):
    request = urllib.request.Request(address, method=method, headers={} if host is None else {"Host": host})
    return urllib.request.urlopen(request, timeout=10)


@pytest.fixture
def server():
    with PageServer("page", "127.0.0.1:0", PAGE, lambda: SHOWN) as one:
        yield one


def test_figures_are_json_of_what_is_shown(server):
    with asked(f"{server.address}figures") as answer:
        told = json.load(answer)
    assert told["devices"][0]["answers"][1] == {"at": 0.125, "ms": 11.25, "kind": "edge"}
    assert (told["second"], len(told["devices"])) == (60.0, 2)


def test_the_page_runs_its_own_script_and_loads_nothing(server):
    with asked(server.address) as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{own}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"""(src|href)=|url\(|@import|innerHTML""", page)
    assert re.findall(r"https?://[^\"']+", page) == ["http://www.w3.org/2000/svg"]  # a name, not a resource


@pytest.mark.parametrize(
    ("path", "method", "host", "status"),
    [
        ("other", "GET", None, 404),
        ("", "POST", None, 501),
        ("figures", "DELETE", None, 501),
        ("figures", "GET", "evil.example.org:80", 403),
        ("", "GET", "10.0.0.1", 403),
    ],
)
def test_other_requests_get_nothing(server, path, method, host, status):
    with pytest.raises(urllib.error.HTTPError) as error:
        asked(server.address + path, method, host)
    assert error.value.code == status


@pytest.mark.parametrize("host", ["localhost:8050", "127.0.0.1", "[::1]:8050"])
def test_this_machines_own_names_are_welcome(server, host):
    with asked(server.address, host=host) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("address", ["0.0.0.0:0", "10.0.0.1:80", "example.org:80", "127.0.0.1", ":80", "127.0.0.1:x"])
def test_others_are_no_place_for_a_page(address):
    with pytest.raises(ConfigError, match=r"page=.*: give host:port of this machine alone, as in 127\.0\.0\.1:8050"):
        PageServer("page", address, PAGE, lambda: SHOWN)


def test_a_busy_port_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            PageServer("page", f"127.0.0.1:{port}", PAGE, lambda: SHOWN)
    line = f"page=127.0.0.1:{port}: the page cannot be served there (Address already in use); name a free port, or 0"
    assert str(error.value).startswith(line)


def test_no_thread_stays_behind():
    with PageServer("page", "127.0.0.1:0", PAGE, lambda: SHOWN) as server:
        asked(server.address).close()
    assert "page" not in {thread.name for thread in threading.enumerate()}


OVERLAPS = """
<script>
setInterval(() => {
  const boxes = [...document.querySelectorAll("svg text, h1, h2, dt, dd, #now, #notes p")]
    .map((one) => [one.textContent, one.getBoundingClientRect()]).filter(([text]) => text);
  const found = [];
  for (const [place, [text, a]] of boxes.entries())
    for (const [other, b] of boxes.slice(place + 1))
      if (a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
        found.push(`${text} / ${other}`);
  const width = document.documentElement.clientWidth + 1;
  for (const [text, box] of boxes) if (box.right > width) found.push(`${text} / the edge`);
  document.body.setAttribute("data-overlaps", boxes.length > 40 ? found.join("; ") || "none" : "too early");
}, 300);
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 900, 500])
def test_a_browser_draws_figures_without_texts_that_overlap(tmp_path, width):
    chromium()
    with PageServer("page", "127.0.0.1:0", PAGE.replace("</body>", f"{OVERLAPS}</body>"), lambda: SHOWN) as server:
        document = shown_document(server.address, tmp_path, width)
    assert 'data-overlaps="none"' in document, re.findall(r'data-overlaps="[^"]*"', document)
    assert "<title>Split inference of LeNet</title>" in document
    assert "60 of 90 s. The edge serves." in document
    for words in ("12.3 Mbit/s", "9.87 Mbit/s", "1234 ms", "7000 pool1, 23720 output", "3 late", "not known"):
        assert words in document
    assert document.count("<svg") == 2
    assert len(re.findall(r'role="img" aria-label="Latency, rate and split point of device \d', document)) == 2
    assert len(re.findall(r"<rect ", document)) == 9  # a split each 7 s of the last minute


@pytest.mark.slow
def test_a_browser_shows_names_as_text_and_runs_nothing_of_them(tmp_path):
    chromium()
    hostile = replace(
        SHOWN,
        title=HOSTILE,
        notes=(HOSTILE,),
        devices=(replace(device(HOSTILE), link=HOSTILE, split=HOSTILE, exits={HOSTILE: 1}, fallbacks={HOSTILE: 1}),),
    )
    with PageServer("page", "127.0.0.1:0", PAGE, lambda: hostile) as server:
        document = shown_document(server.address, tmp_path)
    assert "<title>broken</title>" not in document
    assert "<img" not in re.sub(r'"[^"]*"', "", document)
    assert document.count("&lt;img src=x") >= 7


@pytest.mark.slow
def test_a_browser_says_that_the_demonstration_has_ended(tmp_path):
    chromium()

    def gone() -> ShownDemo:
        raise ConfigError("gone")

    with PageServer("page", "127.0.0.1:0", PAGE, gone) as server:
        assert "The demonstration has ended" in shown_document(server.address, tmp_path)
