"""Loads data by `datasets`, divides them by `flwr-datasets`, and takes a user's own Dataset."""

from fsl.data.alignment import PSI, Alignment, Clear
from fsl.data.augment import Augmentation
from fsl.data.dividing import divide
from fsl.data.examples import DatasetExamples, Examples, TensorExamples
from fsl.data.given_data import as_examples, from_dataset
from fsl.data.loaders import cifar10, digits, images
from fsl.data.own_partitions import Given, as_partitioner
from fsl.data.partition import Partition, class_counts, limited
from fsl.data.partitioners import IID, Dirichlet, Natural, Partitioner, Pathological, Proportional, Resample, Shards
from fsl.data.party_tables import party_csv
from fsl.data.rewritten_images import recompress, recompressed
from fsl.data.table_data import from_table
from fsl.data.task import TaskData, as_task, hold_out
from fsl.data.texts import from_text
from fsl.data.tones import digits_with_tones
from fsl.data.tree_examples import TreeExamples, from_columns, from_dicts
from fsl.data.vertical_data import EdgeLabels, PartyTable, VerticalData, VerticalTask, vertical
from fsl.data.vertical_tables import breast_cancer, vertical_csv

__all__ = [
    "IID",
    "PSI",
    "Alignment",
    "Augmentation",
    "Clear",
    "DatasetExamples",
    "Dirichlet",
    "EdgeLabels",
    "Examples",
    "Given",
    "Natural",
    "Partition",
    "Partitioner",
    "PartyTable",
    "Pathological",
    "Proportional",
    "Resample",
    "Shards",
    "TaskData",
    "TensorExamples",
    "TreeExamples",
    "VerticalData",
    "VerticalTask",
    "as_examples",
    "as_partitioner",
    "as_task",
    "breast_cancer",
    "cifar10",
    "class_counts",
    "digits",
    "digits_with_tones",
    "divide",
    "from_columns",
    "from_dataset",
    "from_dicts",
    "from_table",
    "from_text",
    "hold_out",
    "images",
    "limited",
    "party_csv",
    "recompress",
    "recompressed",
    "vertical",
    "vertical_csv",
]
