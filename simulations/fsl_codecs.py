"""`fsl-codecs`: codecs side by side on one model, cut and data set, with the input itself as the baseline."""

import argparse
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fsl.simulations.codec_bench.bench import Bench
from fsl.simulations.codec_bench.cases import USUAL, codec_cases, image_cases, refuse_own
from fsl.simulations.command_lines import Parser
from fsl.simulations.console_scripts import run_script, say_why
from fsl.simulations.endings import interruption, sigterm_ends_like_ctrl_c
from fsl.simulations.error_lines import one_line
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fsl.errors import ConfigError, FslError

_EPILOG = f"""
overrides are those of fsl-simulate, the same for all codecs:
  fsl-codecs data=cifar10 data.path=data/cifar10 model=vgg5 rounds=20 optimizer=adam \\
    --codec int8 --codec 'c3 ratio=8' --codec '[c3,int8]' --codec 'topk k=0.05 codec.down=int8' \\
    --images jpeg:75 webp:50 --seeds 0 1 2 --jobs 2 --out outputs/codecs

'c3 ratio=8' sets codec.up.ratio. identity, what crosses without a codec, is always there. Without --codec there are
{", ".join(USUAL)}.
The same command goes on with a bench that was interrupted; a further codec or seed is added to it.
"""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (a run failed), 2 (bad input) or 130 (Ctrl-C)."""
    try:
        options = _parser().parse_intermixed_args(list(arguments))
        with sigterm_ends_like_ctrl_c():
            return _run(options)
    except KeyboardInterrupt as error:
        word, code = interruption(error)
        return say_why("fsl-codecs", f"{word}; the same command with --out goes on", code)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return say_why("fsl-codecs", one_line(error), 2)
    except (FslError, OSError) as error:
        return say_why("fsl-codecs", one_line(error), 1)


def _run(options: argparse.Namespace) -> int:
    refuse_own(options.overrides)
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: it must be at least 1")
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise ConfigError(f"--seeds {' '.join(map(str, options.seeds))}: give different numbers of at least 0")
    out = options.out or Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}-codecs"
    bench = Bench(
        out=out,
        overrides=tuple(options.overrides),
        codecs=codec_cases(options.codec or USUAL),
        seeds=tuple(options.seeds),
        metric=options.metric,
    )
    bench.add_images(image_cases(options.images, bench.loader))
    bench.check()
    failed = bench.run(options.jobs)
    print(bench.write())
    for title, reason in failed.items():
        say_why("fsl-codecs", f"{title} failed: {reason}", 1)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fsl-codecs",
        description="Compare codecs: accuracy against bytes, both ways, and what each costs device and edge.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="see below")
    parser.add_argument("--codec", action="append", metavar="'NAME option=value'", help="one codec; may be given again")
    parser.add_argument(
        "--images", nargs="*", default=[], metavar="FORMAT:QUALITY", help="the input itself, as jpeg:75 or webp:50"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of runs that are compared pairwise")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, a process each (default: 1)")
    parser.add_argument("--metric", default="accuracy", help="a column of metrics.jsonl, of the last round")
    parser.add_argument("--out", type=Path, help="folder of results and runs; an earlier one goes on")
    return parser


def main() -> None:
    """Run the console script."""
    run_script(command)


if __name__ == "__main__":
    main()
