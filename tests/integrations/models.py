"""A model with one mistake, one without, and their source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SICK = """\
import torch
import torch.nn.functional as F
from torch import nn


class Sick(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.fc = nn.Linear(width, 8)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5)
"""
WELL = SICK.replace("Sick", "Well").replace("0.5)", "0.5, training=self.training)")


class Sick(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.fc(x), 0.5)


class Well(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(x))
