"""The projector of objectives that compare views, and what shows that its features have not collapsed.

B batch, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ml.contracts import Batch, Part
from ml.ranks import gathered


def projector(width: int, hidden: int, output: int) -> nn.Sequential:
    """Two layers with batch normalisation between."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, output, bias=False)
    )


def encode_views(backbone: nn.Module, batch: Batch) -> Tensor:
    """Pooled features (2B, D) of the two views: row i and row B + i show the same item."""
    names = batch.views[0]
    return backbone.encode({name: torch.cat([view[name] for view in batch.views]) for name in names}).pooled_BD


def gathered_views(part: Part | None, *features_BD: Tensor) -> list[Tensor]:
    """Each of them, of the two views of the whole batch where several processes share it, by one exchange: each item is told from all others."""
    if part is None:
        return [*features_BD]
    halves = [half for one_BD in features_BD for half in one_BD.chunk(2)]
    whole = gathered(torch.cat(halves, 1), part).split([half.shape[1] for half in halves], 1)
    return [torch.cat(pair) for pair in zip(whole[::2], whole[1::2], strict=True)]


def own_places(part: Part | None, own_BD: Tensor) -> Tensor:
    """Where the rows of both views that this process has are among those of the whole batch."""
    count = len(own_BD) // 2
    start, rows = (0, count) if part is None else (part.start, part.rows)
    first_B = torch.arange(start, start + count, device=own_BD.device)
    return torch.cat([first_B, first_B + rows])


def spread(features_BD: Tensor) -> Tensor:
    """Mean standard deviation of unit-length features times √D: near 1 when they use all directions, 0 when collapsed."""
    unit_BD = F.normalize(features_BD.detach().float(), dim=1)
    return unit_BD.std(0, correction=0).mean() * unit_BD.shape[1] ** 0.5
