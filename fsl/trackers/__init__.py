"""Where the numbers of a run go while it runs: TensorBoard, Weights & Biases, MLflow, or a tracker of your own."""

from fsl.trackers.mlflow import MLflow
from fsl.trackers.tensorboard import TensorBoard
from fsl.trackers.tracker import Tracker
from fsl.trackers.wandb import WandB

__all__ = ["MLflow", "TensorBoard", "Tracker", "WandB"]
