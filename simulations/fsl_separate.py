"""`fsl-separate`: a finished run's model over several devices, which exchange the maps that a search found."""

from collections.abc import Callable, Sequence

from fsl.simulations.console_scripts import run_script, say_why
from fsl.simulations.endings import failure_in_words, interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from fsl.simulations.separating.separate_device import separate_device, separate_token
from fsl.simulations.separating.separate_local import separate_local
from fsl.simulations.separating.separate_search import separate_search
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, FslError

_USAGE = """usage: fsl-separate search run=FOLDER [devices=4] [share=0.25] [name=value ...]
       fsl-separate local  folder=FOLDER [rows=1] [count=20] [name=value ...]
       fsl-separate device folder=FOLDER/device2 address=HOST:PORT peers=HOST:PORT,HOST:PORT ca=FILE cert=FILE
                           cert-key=FILE [name=value ...]
       fsl-separate token  key=FILE folder=FOLDER/device2 [days=30] [out=FILE]

search divides the channels of a finished run's model over devices, finds which maps they exchange, trains the run's
weights on with these gates, and writes a folder for each device. local runs all of them as processes of this machine,
and says whether they give one program's outputs to the bit. device runs one: it listens, reaches the devices of lower
number (peers, from device 0 on), and serves until device 0 ends. token signs, with a key of fsl-serve key, that a
device may take part.

search:
  share=0.25          of all links' bytes of maps, at most
  epochs=5 retrain=5  of the search, whose weights go, and of training with the gates that it found
  batch_size=64 learning_rate=0.001 gate_rate=0.05
  compare=true        train random gates of equal bytes and a network without links beside it
  device=pi4 link=wifi_75   profiles for predicted milliseconds
  front=3             whose front, where each device of the run has its own
  out=FOLDER          default: the run's folder/separable; overwrite=true replaces it

local:
  rows=1 count=20     images of a request, and requests

device:
  run=FOLDER          of device 0: the run whose test rows it asks for, rows=16 at a time, count=20 times
  connect=60          seconds for all devices to be there; patience=10: for maps; idle=600: for a request
  token=FILE token-key=FILE   this device's token, and the operator's public key
  insecure=true       no TLS, on this machine alone

threads=1 of torch and allow=PACKAGE (of the network's class, if not fsl's) go with local and device."""

_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "search": separate_search,
    "local": separate_local,
    "device": separate_device,
    "token": separate_token,
}


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code.

    0; 1: it could not go on; 2: bad input; 130: Ctrl-C; 143: SIGTERM.
    """
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE)
        return 0
    try:
        if not arguments or arguments[0] not in _COMMANDS:
            given = f"{arguments[0]!r} is none" if arguments else "none is given"
            raise ConfigError(f"say what to do: {', '.join(_COMMANDS)}; {given}; see fsl-separate --help")
        with sigterm_ends_like_ctrl_c():
            return _COMMANDS[arguments[0]](arguments[1:]) or 0
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say_why("fsl-separate", word, code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why("fsl-separate", one_line(error).replace("overwrite=True", "overwrite=true"), 2)
    except (FslError, OSError) as error:
        return say_why("fsl-separate", one_line(error), 1)
    except Exception as error:  # of the model's own code
        return say_why("fsl-separate", failure_in_words(error), 1)


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
