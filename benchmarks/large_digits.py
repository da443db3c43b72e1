"""Digits of MNIST's size (1, 28, 28), for benchmarks of nodes: a loader that nodes import, so it imports little."""

from torch.nn.functional import interpolate

from fsl.data import TaskData, TensorExamples, digits


def large_digits() -> TaskData:
    """Enlarge scikit-learn's digits to 28 x 28 pixels."""
    small = digits()
    assert isinstance(small.train, TensorExamples)
    assert isinstance(small.test, TensorExamples)
    train, test = (TensorExamples(interpolate(one.inputs, 28), one.targets) for one in (small.train, small.test))
    return TaskData("large digits", train, test, small.classes, class_names=small.class_names)
