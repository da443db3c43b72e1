"""What the ledger takes for granted: it stands in privacy.json beside the figures that depend on it."""

from fsl.privacy.claims import Setting

_ALWAYS = (
    "this run alone is counted: trials of a search on the same data are runs of their own, whose epsilons add up, and "
    "to choose the best of them is no release that is counted here",
    "what init_from or a model that was trained before knows of these data is not counted; the run that trained it has "
    "a ledger of its own, and the two add up",
    "constants that inputs are normalised by, test and validation data, n_k and the number of steps are public",
    "the run's folder stays with who ran it but for its model and metrics: summary.json has a digest of the data that "
    "the run was started with, by which a run goes on and which tells data sets apart for certain",
    "a person whose samples are several, or on several devices, pays for each",
    "cloud, edges and devices follow the protocol, and add the noise that the plan asks of them",
)


def assumed(setting: Setting) -> list[str]:
    """The assumptions of a run's ledger, each a sentence."""
    found = list(_ALWAYS)
    if "front" in setting.fixed and not setting.fitted:
        word = "declared (privacy.public_front)" if setting.privacy.public_front else "taken"
        found.append(
            f"the front is frozen and {word} as never fitted to these data: no weight, buffer or constant that inputs "
            "are normalised by comes from them"
        )
    if setting.spread > 1:
        found.append("rows keep their positions: batches are fixed, and one sample moves that many fronts in a step")
    return found
