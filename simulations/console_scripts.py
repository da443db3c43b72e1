"""What console scripts have in common: how one begins, and the line that says why it failed."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fsl.simulations.endings import failure_in_words, interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, FslError
from fsl.segments.uncompiled import leave_out_compiler


def run_script(command: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command on this process's arguments, with the user's own modules at hand, and exit with its code."""
    leave_out_compiler()
    sys.path.append(os.getcwd())  # at the end: the user's own model lies here, and must shadow nothing
    sys.exit(command(sys.argv[1:]))


def say_why(script: str, line: str, code: int) -> int:
    """Say on stderr why a script, or a part of its work, failed; returns the exit code."""
    print(f"{script}: {line}", file=sys.stderr, flush=True)
    return code


def run_command(script: str, usage: str, arguments: Sequence[str], work: Callable[[Sequence[str]], None]) -> int:
    """Do the work of a command line that writes its results at the end, or print its help; returns the exit code.

    0; 1: it could not go on; 2: bad input; 130: Ctrl-C; 143: SIGTERM. Each failure is one line on stderr.
    """
    if "-h" in arguments or "--help" in arguments:
        print(usage)
        return 0
    try:
        with sigterm_ends_like_ctrl_c():
            work(arguments)
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say_why(script, f"{word}; nothing was written", code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why(script, one_line(error), 2)
    except (FslError, OSError) as error:
        return say_why(script, one_line(error), 1)
    except Exception as error:  # of the model's own code
        return say_why(script, failure_in_words(error), 1)
    return 0
