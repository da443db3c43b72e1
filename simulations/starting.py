"""Starts commands that import much: garbage is not looked for meanwhile, which took a fifth of that time.

Imports make hundreds of thousands of objects that stay, and almost no garbage. What they made is not looked through
again while the command runs, either.
"""

import gc


def simulate() -> None:
    """Run the console script `fsl-simulate`."""
    gc.disable()
    try:
        from fsl.simulations.fsl_simulate import main
        from fsl.simulations.sweeps import sweep as sweep  # which it imports later
    finally:
        gc.freeze()
        gc.enable()
    main()


if __name__ == "__main__":
    simulate()
