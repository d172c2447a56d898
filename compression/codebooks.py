"""Codebooks for product quantisation: k-means of many points into few centroids, for several groups at once."""

import torch
from torch import Tensor

from splitfed.seeds import Key

# Lloyd's steps see so many points a centroid at most; more hardly move the centroids. Faiss draws the line at 256.
_POINTS_A_CENTROID = 128
_MOST_AT_ONCE = 1 << 22  # distances


@torch.no_grad()
def fit(points: Tensor, count: int, key: Key, iterations: int) -> tuple[Tensor, Tensor]:
    """Find `count` centroids for the points `[G, P, F]` (finite float32) of each group; `count` is at most P.

    Lloyd's algorithm from points drawn by `key` without repetition, `iterations` steps at most on a sample. Returns the
    centroids `[G, count, F]`, each the mean of the points that are its own or, where it has none, left where it was,
    and the number of each point's centroid, `[G, P]` int64.
    """
    largest = points.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    points = points / largest
    middle = points.mean(1, keepdim=True).clamp_(-1, 1)  # distances far from the origin would be lost to rounding
    points = points - middle
    drawn = torch.randperm(points.shape[1], generator=key.generator()).to(
        points.device
    )  # on the CPU: the same anywhere
    sample = points.index_select(1, drawn[: _POINTS_A_CENTROID * count])
    centroids = sample[:, :count]

    with torch.autocast(points.device.type, enabled=False):
        numbers = _nearest(sample, centroids)
        for _ in range(iterations):
            centroids = _means(sample, numbers, centroids)
            moved = _nearest(sample, centroids)
            if torch.equal(moved, numbers):
                break
            numbers = moved
        numbers = _nearest(points, centroids)
        centroids = _means(points, numbers, centroids)
    return (centroids + middle).clamp_(-1, 1) * largest, numbers


def _chunk(centroids: Tensor) -> int:
    return max(1, _MOST_AT_ONCE // (centroids.shape[0] * centroids.shape[1]))


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    # half the squared distance, negative and without the point's own square, which is the same for all centroids
    rest = -0.5 * centroids.square().sum(2).unsqueeze(1)
    return torch.cat([torch.baddbmm(rest, p, centroids.mT).argmax(2) for p in points.split(_chunk(centroids), 1)], 1)


def _means(points: Tensor, numbers: Tensor, centroids: Tensor) -> Tensor:
    # a product with the one-hot matrix: sums in one order always, unlike index_add_ on CUDA
    sums, sizes, size = torch.zeros_like(centroids), centroids.new_zeros(*centroids.shape[:2], 1), _chunk(centroids)
    every = torch.arange(centroids.shape[1], device=points.device)
    for some, theirs in zip(points.split(size, 1), numbers.split(size, 1), strict=True):
        member = (theirs.unsqueeze(2) == every).to(points.dtype)
        sums.baddbmm_(member.mT, some)
        sizes += member.sum(1).unsqueeze(2)
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
