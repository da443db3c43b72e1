"""`fsl-serve`: serves the model of a finished run between devices and edges."""

from collections.abc import Callable, Sequence

from fsl.simulations.console_scripts import run_script, say_why
from fsl.simulations.endings import interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from fsl.simulations.serving.serve_demo import serve_demo
from fsl.simulations.serving.serve_device import serve_device
from fsl.simulations.serving.serve_edge import serve_edge
from fsl.simulations.serving.serve_profile import serve_profile
from fsl.simulations.serving.serve_tokens import make_key, make_token
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, FslError

_USAGE = """usage: fsl-serve edge   run=FOLDER address=HOST:PORT cert=FILE cert-key=FILE token-key=FILE [name=value ...]
       fsl-serve device run=FOLDER edge=HOST:PORT[,...] ca=FILE token=FILE [name=value ...]
       fsl-serve profile run=FOLDER address=HOST:PORT cert=FILE cert-key=FILE token-key=FILE [name=value ...]
       fsl-serve key    [out=FOLDER]
       fsl-serve token  key=FILE name=NAME [days=30] [out=FILE]
       fsl-serve demo   [run=FOLDER] [seconds=60] [page=127.0.0.1:8050] [name=value ...]

edge serves the model of a finished run of fsl-simulate until Ctrl-C; device sends it rows of the run's data set, and
prints accuracy, latency and fallbacks. Both read the same run. profile measures the model on its machine for who asks
(fsl-profile run=FOLDER device_at=HOST:PORT). key makes an operator's key pair, and token a token that
lets a device ask. demo trains a small model if there is none, starts an edge and two devices on links that change, and
shows on a page what they do.

Both ends:
  run=FOLDER          a finished run
  points=NAME[,NAME]  points where the model can be divided, or all; default: the run's own cuts
  front=3             whose front, where each device of the run has its own
  int8=true           the front runs in int8 (lean_front=int8, or calibrated on its data); int8=7: by 7 bits
  insecure=true       no TLS, on this machine alone
  threads=1           of torch
  metrics=HOST:PORT   for Prometheus

edge:
  max-rows=64         rows that are joined into one batch; default: 1, none are joined
  max-wait=0.002      seconds that they wait for each other at most; default: 0
  queue=1024          rows that may wait, and that a question may have
  lean=HOST:PORT      where questions travel; default: the port behind address's; none: over gRPC, more slowly
  client-ca=FILE      ask devices for certificates that this CA signed
  allow=PACKAGE       more packages that devices' codecs may be from

profile, beside address, cert, cert-key, client-ca and token-key:
  power=6.4           watts that this machine draws as it computes, for energy

device:
  point=NAME          where it divides the model; default: the last exit, or else the first cut, or input
  codec=int8          of what crosses; default: identity
  exits=FOLDER        with exits that save_exits wrote: rows that are sure leave on the device
  threshold=0.9       confidence from which they leave; default: as saved
  data=test           or validation, or train
  rows=1 count=100    rows of a question, and questions
  rate=20             questions a second; default: each when the one before is answered
  deadline=0.1        seconds for an answer; then the device computes the rest itself
  fallback=false      never compute the rest on the device
  connect=5           seconds to wait for an edge before the first question
  lean=false          questions travel over gRPC
  summary=FILE        fsl's common metrics of the answers, as JSON
  cert=FILE cert-key=FILE, where the edge asks for them

demo, all on this machine:
  run=FOLDER          a finished run, or where to train one; default: outputs/demo-inference
  points=NAME[,NAME]  points where the model can be divided; default: all
  seconds=60          how long devices ask
  page=HOST:PORT      of the page
  links=lte,5g        a device for each: wifi, lte, 5g, or a CSV file of second,mbit
  tunnel=3            seconds without a link for the first device
  delay=0.002         seconds of delay on a link each way
  speed=140           million multiply-adds a second of a device
  rows=64 rate=8      rows of a question, and questions a second of a device
  deadline=1          seconds for an answer; then the device computes the rest itself
  lean=false          questions travel over gRPC"""

_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "edge": serve_edge,
    "device": serve_device,
    "demo": serve_demo,
    "profile": serve_profile,
    "key": make_key,
    "token": make_token,
}


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    0; 1: it could not go on, or a question has no answer; 2: bad input; 130: Ctrl-C; 143: SIGTERM.
    """
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE)
        return 0
    try:
        if not arguments or arguments[0] not in _COMMANDS:
            given = f"{arguments[0]!r} is none" if arguments else "none is given"
            raise ConfigError(f"say what to do: {', '.join(_COMMANDS)}; {given}; see fsl-serve --help")
        with sigterm_ends_like_ctrl_c():
            return _COMMANDS[arguments[0]](arguments[1:]) or 0
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say_why("fsl-serve", word, code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why("fsl-serve", one_line(error), 2)
    except (FslError, OSError) as error:
        return say_why("fsl-serve", one_line(error), 1)


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
