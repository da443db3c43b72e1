"""Models for small images, each a sequence of named stages with its paper's cut as default; transformers by name."""

from fsl.models.alexnet import AlexNet
from fsl.models.hugging_face import huggingface
from fsl.models.lenet import LeNet
from fsl.models.mlp import MLP
from fsl.models.resnet import ResNet8, ResNet18
from fsl.models.vgg import VGG5, VGG16

__all__ = ["MLP", "VGG5", "VGG16", "AlexNet", "LeNet", "ResNet8", "ResNet18", "huggingface"]
