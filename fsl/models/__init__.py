"""Models for small images, each a sequence of named stages with its paper's cut as default; transformers; parties'."""

from fsl.models.alexnet import AlexNet
from fsl.models.binarized import BinaryActivation, BinaryConv2d, BinaryLinear, binarized
from fsl.models.binary_vgg5 import BinaryVGG5
from fsl.models.bottlefit import BottleFit, bottlefit
from fsl.models.fusions import Attention, Concatenation, Fusion, Max, Mean, Product, Sum
from fsl.models.ghost_module import GhostModule
from fsl.models.ghostnet import GhostNet
from fsl.models.hugging_face import huggingface
from fsl.models.lenet import LeNet
from fsl.models.mlp import MLP
from fsl.models.packed_binary import PackedConv2d, PackedLinear, pack_binary
from fsl.models.picture_and_tone import PictureAndTone
from fsl.models.resnet import ResNet8, ResNet18
from fsl.models.vertical_mlp import VerticalMLP
from fsl.models.vertical_model import VerticalModel
from fsl.models.vgg import VGG5, VGG16

__all__ = [
    "MLP",
    "VGG5",
    "VGG16",
    "AlexNet",
    "Attention",
    "BinaryActivation",
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryVGG5",
    "BottleFit",
    "Concatenation",
    "Fusion",
    "GhostModule",
    "GhostNet",
    "LeNet",
    "Max",
    "Mean",
    "PackedConv2d",
    "PackedLinear",
    "PictureAndTone",
    "Product",
    "ResNet8",
    "ResNet18",
    "Sum",
    "VerticalMLP",
    "VerticalModel",
    "binarized",
    "bottlefit",
    "huggingface",
    "pack_binary",
]
