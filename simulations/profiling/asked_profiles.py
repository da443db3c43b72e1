"""Profiles that fsl-profile asks other machines for."""

from collections.abc import Mapping

from fsl.simulations.endings import tell
from fsl.simulations.profiling.profile_options import ProfileOptions
from fsl.simulations.profiling.profiled_model import ProfiledModel
from fsl.simulations.serving.serve_tokens import read_token

from fsl.inference.profiles import ModelProfile
from fsl.inference.serving.profile_asking import ask_profile
from fsl.wire.options import Certificates


def asked(
    options: ProfileOptions, subject: ProfiledModel, given: Mapping[str, ModelProfile]
) -> dict[str, ModelProfile]:
    """Returns the profiles by side, with those of machines that are asked, one after the other.

    Points and batch are those of a profile that is there already, or else as the options say.
    """
    found = dict(given)
    for side, address in (("device", options.device_at), ("edge", options.edge_at)):
        if address is None:
            continue
        other = next(iter(found.values()), None)
        names = options.points if other is None else other.names
        tell(f"{side}: {address} measures")
        found[side] = ask_profile(
            address,
            subject.points(names),
            token=b"" if options.token is None else read_token(options.token),
            certificates=None if options.insecure else Certificates(ca=options.ca),
            names=names,
            batch=options.batch or (1 if other is None else other.batch),
            repetitions=options.repetitions,
            warm_up=options.warm_up,
            checks=options.checks,
            wait=options.wait,
        )
    return found
