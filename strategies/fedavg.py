"""FedAvg on the unsplit model (McMahan et al., AISTATS 2017): the control of split training."""

from fsl.strategies.split_strategy import SplitStrategy


class FedAvg(SplitStrategy):
    """Every device trains the whole model; the cloud averages models with weights n_k/n each round."""

    fronts = "averaged"

    def trainer(self, round: int) -> None:
        """Returns None: no edge takes part."""
        return
