"""K-means on the device of its points, without a Python loop over clusters or samples: of one set of points, or of
several groups at once, which makes the codebooks of product quantisation."""

from collections.abc import Callable

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
        labels, centres = _lloyd(points, centres, iterations, _nearest, _means)

    sizes = one_hot(labels, len(centres)).sum(0)
    used = sizes > 0
    return (used.cumsum(0) - 1)[labels], sizes[used]


def _lloyd(
    points: Tensor, centres: Tensor, iterations: int, nearest: Callable[[Tensor, Tensor], Tensor],
    means: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the nearest centre of each point, and the centres, once no point moves or after so many iterations."""
    labels = nearest(points, centres)
    for _ in range(iterations):
        centres = means(points, labels, centres)
        moved = nearest(points, centres)
        if torch.equal(moved, labels):
            break
        labels = moved
    return labels, centres


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    # the squared distance without the point's own square, which is the same for all centres
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)


def _means(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    # a product with the one-hot matrix: sums in one order always, unlike index_add_ on CUDA
    member = one_hot(labels, len(centres)).to(points.dtype)
    sizes = member.sum(0).unsqueeze(1)
    return torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centres)


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
        _, centroids = _lloyd(sample, centroids, iterations, _nearest_in_group, _means_in_group)
        numbers = _nearest_in_group(points, centroids)
        centroids = _means_in_group(points, numbers, centroids)
    return (centroids + middle).clamp_(-1, 1) * largest, numbers


def _chunk(centroids: Tensor) -> int:
    return max(1, _MOST_AT_ONCE // (centroids.shape[0] * centroids.shape[1]))


def _nearest_in_group(points: Tensor, centroids: Tensor) -> Tensor:
    # half the squared distance, negative and without the point's own square, which is the same for all centroids
    rest = -0.5 * centroids.square().sum(2).unsqueeze(1)
    return torch.cat([torch.baddbmm(rest, p, centroids.mT).argmax(2) for p in points.split(_chunk(centroids), 1)], 1)


def _means_in_group(points: Tensor, numbers: Tensor, centroids: Tensor) -> Tensor:
    # a product with the one-hot matrix: sums in one order always, unlike index_add_ on CUDA
    sums, sizes, size = torch.zeros_like(centroids), centroids.new_zeros(*centroids.shape[:2], 1), _chunk(centroids)
    every = torch.arange(centroids.shape[1], device=points.device)
    for some, theirs in zip(points.split(size, 1), numbers.split(size, 1), strict=True):
        member = (theirs.unsqueeze(2) == every).to(points.dtype)
        sums.baddbmm_(member.mT, some)
        sizes += member.sum(1).unsqueeze(2)
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
