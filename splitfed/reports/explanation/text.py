"""The table of an explanation: what a mini-batch was before the reducer and the codecs, and after."""

from rich.table import Table

from splitfed.reports import units
from splitfed.reports.explanation.explain import Explanation
from splitfed.reports.tables import new_table


def table(explanation: Explanation) -> Table:
    """Return how much of a mini-batch is left: samples, tokens, attention, and bytes on their way up."""
    one = explanation
    samples, tokens = one.kept.shape
    after = float((one.kept > 0).sum(1).float().mean())
    found = new_table("", ["batch", "sent", "share"])
    found.add_row("samples", str(samples), str(len(one.members)), units.percent(len(one.members) / samples))
    found.add_row("tokens of a sample", str(tokens), f"{after:g}" if after.is_integer() else units.decimal(after, 1),
                  _percent(after / tokens))  # fmt: skip
    if one.in_part:
        share = float(one.kept.mean())
        found.add_row("values of a sample", str(one.values), units.decimal(share * one.values, 0), _percent(share))
    if one.attention_kept is not None:
        found.add_row("attention to patches", "", "", _percent(one.attention_kept))
    raw, sent = one.sent.raw, one.sent.sent
    found.add_row("bytes up", units.size(raw), units.size(sent), _percent(sent / raw))
    return found


def notes(explanation: Explanation) -> list[str]:
    """Return a line on the batch, and one on what was merged, if anything was."""
    one = explanation
    of = "the validation split" if one.client is None else f"client {one.client}, its first of round {one.round + 1}"
    lines = [f"{one.scenario.name} after round {one.round}, {one.scenario.compression.reducer.kind}: a batch of {of}"]
    if one.mixed_pairs is not None:
        several = sum(len(rows) > 1 for rows in one.members)
        lines.append(
            f"{several} of {len(one.members)} sent samples are made of several images, {one.mixed} of them of several "
            f"classes; {_percent(one.mixed_pairs)} of the merged pairs are of two classes"
        )
    return lines


def _percent(share: float) -> str:
    return units.percent(round(share, 6))  # float32 knows no more
