"""K-means on the device of its points, without a Python loop over clusters or samples."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from splitfed.seeds import Key


@torch.no_grad()
def kmeans(
    points: Tensor, clusters: int, key: Key, iterations: int = 50, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Group points `[B, F]` into at most `clusters` by Lloyd's algorithm (Lloyd, 1982), Euclidean.

    Starts from `start` `[T, F]`, or from points drawn without repetition by `key`; stops when no point moves. Returns
    the cluster of each point, `[B]` int64, numbered 0 to C - 1 without gaps because empty clusters are dropped, and the
    clusters' sizes, `[C]` int64, all positive.
    """
    # float64 loses nothing to cancellation and is out of reach of autocast and TF32; Apple's GPU has none
    points = points.to(torch.float32 if points.device.type == "mps" else torch.float64)
    if start is None:
        rows = torch.randperm(len(points), generator=key.generator())[:clusters]  # on the CPU: the same on any device
        start = points[rows.to(points.device)]
    centres = start.to(points)

    with torch.autocast(points.device.type, enabled=False):
        labels = _nearest(points, centres)
        for _ in range(iterations):
            centres = _means(points, labels, centres)
            moved = _nearest(points, centres)
            if torch.equal(moved, labels):
                break
            labels = moved

    sizes = one_hot(labels, len(centres)).sum(0)
    used = sizes > 0
    return (used.cumsum(0) - 1)[labels], sizes[used]


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    # the squared distance without the point's own square, which is the same for all centres
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)


def _means(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    # a product with the one-hot matrix: sums in one order always, unlike index_add_ on CUDA
    member = one_hot(labels, len(centres)).to(points.dtype)
    sizes = member.sum(0).unsqueeze(1)
    return torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centres)
