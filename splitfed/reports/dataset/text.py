"""A description of a scenario's data as text, as a table, and as CSV."""

import math
from collections import Counter

import torch
from rich.table import Table
from torch import Tensor

from splitfed.data.stratify import count_held_out
from splitfed.reports import units
from splitfed.reports.dataset.describe import Description
from splitfed.reports.tables import new_table, to_csv
from splitfed.scenario.yaml import write_line


def partition_line(one: Description) -> str:
    """Return the partition as a scenario writes it, on one line: `dirichlet, alpha: 0.5`."""
    settings = one.scenario.data.partition.model_dump(mode="json", exclude_none=True)
    kind, _ = settings.pop("kind"), settings.pop("transforms", None)  # whose line is too long, and another tells them
    settings = {key: value for key, value in settings.items() if value is not False and (key, value) != ("min_size", 1)}
    text = write_line(settings).strip("{}") if settings else ""
    return f"{kind}, {text}" if text and len(text) < 60 else kind


def head(one: Description) -> list[str]:
    """Return what is to be known of all clients, a line each."""
    counts, used = one.counts, one.images > 0
    skew = units.decimal(float(one.distances[used].mean()), 3)
    lines = [
        f"{one.scenario.name}: {one.scenario.data.path}, {len(one.classes)} classes",
        f"splits       {counts.train:,} images to train on, {counts.validation:,} to validate, {counts.test:,} to test",
        f"partition    {partition_line(one)}, {len(one.held):,} clients, seed {one.scenario.seed}",
        f"images       {_spread(one.images)} for each client",
        f"weight       {units.size(one.images_bytes)} as stored, of all that clients hold",
        f"classes      {_spread(one.kinds)} for each client",
        f"label skew   {skew}, the mean total variation between a client's classes and all images': 0 to 1",
    ]
    if share := one.scenario.evaluation.held_out:
        out = torch.tensor([count_held_out(images, share) for images in one.images[used].tolist()])
        lines.append(f"held out     {_spread(out)} of each client's images, never trained on")
    if empty := int((~used).sum()):
        lines.append(
            f"empty        {empty:,} {'client' if empty == 1 else 'clients'} without images, never drawn to train"
        )
    if one.views:
        lines.append(f"seen         {_seen(one)}; validation and test images stay as they are")
    if one.left_out:
        lines.append(f"left out     {one.left_out:,} training images go to no client")
    return lines + [f"note         {note}" for note in one.notes]


def table(one: Description, most: int = 20) -> Table:
    """Return the first clients, a row each: images, classes, which class is the commonest, and the label skew."""
    sees = [] if one.views is None else [str(view) for view in one.views]
    found = new_table(
        "client", ["images", "classes", "commonest", "its share", "skew", *(["sees through"] * bool(sees))]
    )
    images, kinds, distances = one.images, one.kinds, one.distances
    for client in range(min(most, len(one.held))):
        name = str(client) if one.owners is None else f"{client} {one.owners[client]}"
        if not images[client]:
            found.add_row(name, "0", "0", units.NONE, units.NONE, units.NONE, *sees[client : client + 1])
            continue
        top = int(one.held[client].argmax())
        share = int(one.held[client, top]) / int(images[client])
        found.add_row(name, f"{int(images[client]):,}", str(int(kinds[client])), one.classes[top],
                      units.percent(share), units.decimal(float(distances[client]), 3),
                      *sees[client : client + 1])  # fmt: skip
    return found


def csv(one: Description) -> str:
    """Return a row for each client: its images, classes and skew, and the images of each class."""
    names = ["client", *(["owner"] if one.owners else []), "images", "classes", "skew",
             *(["view"] if one.views else []), *(f"class {name}" for name in one.classes)]  # fmt: skip
    rows = []
    columns = zip(one.held.tolist(), one.images.tolist(), one.kinds.tolist(), one.distances.tolist(), strict=True)
    for client, (held, images, kinds, distance) in enumerate(columns):
        skew = None if math.isnan(distance) else round(distance, 6)
        row = {"client": client, "images": images, "classes": kinds, "skew": skew}
        row |= {f"class {name}": count for name, count in zip(one.classes, held, strict=True)}
        row |= {"view": str(one.views[client])} if one.views else {}
        rows.append(row | ({"owner": one.owners[client]} if one.owners else {}))
    return to_csv(names, rows)


def _seen(one: Description) -> str:
    views = Counter(map(str, one.views or ()))
    if set(views) == {"none"}:
        return "as they are by all clients"
    return "through " + ", ".join(f"{name} by {count:,}" for name, count in views.items())


def _spread(values: Tensor) -> str:
    low, high = int(values.min()), int(values.max())
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,} (median {values.double().quantile(0.5):,.10g})"
