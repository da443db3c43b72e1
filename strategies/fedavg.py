"""FedAvg on the unsplit model: the control that split training is compared with (McMahan et al., AISTATS 2017)."""

from fsl.strategies.split_strategy import SplitStrategy


class FedAvg(SplitStrategy):
    """Every device trains the whole model; models are averaged with weights n_k/n each round."""

    fronts = "averaged"

    def trainer(self, round: int) -> None:
        """No edge takes part."""
        return
