"""Parties with different features of the same people, and models over them."""

import torch
from torch import nn

import fsl
from fsl.data import EdgeLabels, PartyTable, VerticalData
from fsl.models import VerticalModel

PEOPLE = 60
WIDTHS = {"bank": 4, "shop": 7}


def tables(labels="edge", parties=("bank", "shop"), people=PEOPLE, seed=0, order=None) -> VerticalData:
    """Learnable: a person's class is the sign of a sum over all features; `order` is that of each party's rows."""
    generator = torch.Generator().manual_seed(seed)
    features = {name: torch.randn(people, WIDTHS.get(name, 3), generator=generator) for name in parties}
    targets = (sum(values.sum(dim=1) for values in features.values()) > 0).long()
    ids = [f"p{person}" for person in range(people)]
    rows = list(range(people)) if order is None else order
    held = {
        name: PartyTable([ids[row] for row in rows], values[rows], targets[rows] if name == labels else None)
        for name, values in features.items()
    }
    return VerticalData(held, EdgeLabels(ids, targets) if labels == "edge" else labels)


def model(fusion="concatenation", parties=("bank", "shop"), dropout=0.0, norm=False, tail=False) -> VerticalModel:
    """Fronts of different depth, all of which send 6 values; the back begins in place."""
    torch.manual_seed(0)
    fronts = {}
    for place, name in enumerate(parties):
        layers = [nn.Linear(WIDTHS.get(name, 3), 6), *([nn.BatchNorm1d(6)] if norm else [])]
        deeper = [nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), *([nn.Dropout(dropout)] if dropout else [])]
        fronts[name] = nn.Sequential(*layers, *(deeper if place else []))
    width = 6 * len(parties) if fusion == "concatenation" else 6
    back = [nn.ELU(inplace=True), nn.Linear(width, 5), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    last = nn.Linear(5, 2)
    return VerticalModel(fronts, nn.Sequential(*back, *([] if tail else [last])), fusion, last if tail else None)


def run(strategy, which=None, data=None, **options) -> fsl.Run:
    """A short run over parties."""
    options = {"rounds": 2, "batch_size": 16, "progress": False} | options
    return fsl.simulate(which or model(), data or tables(), strategy=strategy, **options)


def party_files(folder, **more) -> dict[str, str]:
    """A CSV file each of a bank, a shop, and the edge with labels, in any order of people; `more` replaces texts."""
    texts = {
        "bank": "id,age,income\n07,30,1.5\n08,40,2.5\n09,50,3.5\n10,60,4.5\n",
        "shop": "visits,id\n1,10\n2,09\n3,08\n4,07\n",
        "edge": "id,bought\n08,no\n07,yes\n10,no\n09,yes\n",
    } | more
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return {name: str(folder / f"{name}.csv") for name in texts}
