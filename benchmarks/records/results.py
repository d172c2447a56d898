"""The tables and pictures of docs/results.md, out of the runs of a sweep.

    splitfed sweep sweeps/cifar100-methods.yaml --jobs 2
    python benchmarks/records/results.py runs/cifar100-methods --page docs/results.md

Written are docs/results/<sweep>.csv with all figures, in docs/results/pictures those of `splitfed compare --out`, of
the methods that --draw names, and the tables on the page, between its marks `<!-- <sweep>: table -->` and
`<!-- end -->`. <sweep>-total.png is the first picture by the bytes of both planes, as `splitfed compare --by total
--out` draws it, of the methods that --draw-total names. With --by total budgets are in bytes of both planes, the marks
are `<!-- <sweep>-total: table -->`, and no file but the page is written, and this picture where --draw-total is given;
where no budget is named the table has what each run came to at its end. Accuracy at a budget is on the validation
split, on a straight line between the rounds around it; the test split was read once, at the end of each run.

Records of runs do in place of runs: python benchmarks/records/results.py docs/results/runs/cifar100-methods
"""

import argparse
import csv
import re
from fnmatch import fnmatchcase
from pathlib import Path

import matplotlib
import torch
from pydantic import ByteSize

from splitfed import Scenario, compare
from splitfed.compression.reducers.settings import AeConfig
from splitfed.errors import SplitfedError
from splitfed.reports import units
from splitfed.reports.study.comparison import Comparison
from splitfed.reports.study.groups import Group, Run, Spread
from splitfed.reports.study.looks import STYLE
from splitfed.reports.study.plots import curves, draw, save
from splitfed.seeds import Key
from splitfed.split.assembly import assemble
from splitfed.split.computing.operations import Operations, count, count_step
from splitfed.split.cut import Cut

BUDGETS = ("40MB", "80MB", "160MB")


def size(text: str) -> int:
    """Read a number of bytes."""
    return int(ByteSize._validate(text, None))  # type: ignore[arg-type]


def percents(found: Spread) -> str:
    """Return a mean, and where there are several values the lowest and the highest."""
    mean = units.percent(found.mean)
    if found.low == found.high:
        return mean
    return f"{mean} ({units.percent(found.low).removesuffix(' %')} to {units.percent(found.high).removesuffix(' %')})"


def operations(one: Group) -> Operations:
    """Count what a group's scenario computes, for which the weights of an autoencoder are not needed: records of runs
    do not have them."""
    scenario = Scenario.load(str(one.runs[0].folder / "scenario.yaml"))
    if not isinstance(scenario.compression.reducer, AeConfig) or scenario.data.expect is None:
        return count(scenario)
    batch, classes = scenario.training.batch_size, scenario.data.expect.classes
    parts = assemble(scenario, classes, pretrained=False)
    cut = Cut.of(scenario, parts.front.geometry(batch, classes), torch.device("cpu"))
    return count_step(parts, cut, scenario, batch, Key(scenario.seed))


def row(one: Group, budgets: list[int], cost: Operations) -> dict[str, object]:
    """Return all figures of a group, in full."""
    cut, total = one.mean(lambda s: s.cut_bytes), one.mean(lambda s: s.total_bytes)
    raw, total_raw = one.mean(lambda s: s.raw_bytes), one.mean(lambda s: s.total_raw_bytes)
    figures: dict[str, object] = {"method": one.label, "seeds": len(one.runs), "ratio": one.ratio}
    for budget in budgets:
        accuracy = one.at(budget)
        for name in ("mean", "low", "high"):
            figures[f"validation_{name}_at_{budget}"] = accuracy and getattr(accuracy, name)
    return figures | {
        "rounds": one.spread(lambda run: run.summary.rounds).mean,
        "test_mean": one.accuracy.mean, "test_low": one.accuracy.low, "test_high": one.accuracy.high,
        "cut_bytes": cut, "total_bytes": total,
        "cut_factor": raw / cut, "total_factor": total_raw / total,
        "seconds": one.spread(lambda run: run.summary.seconds).mean,
        "client_operations": cost.client, "client_ratio": cost.client_ratio,
        "server_operations": cost.server, "server_ratio": cost.server_ratio,
    }  # fmt: skip


def table(groups: list[Group], budgets: list[int], costs: list[Operations]) -> str:
    """Return a table in Markdown, a row for each group."""
    heads = [
        "method", "seeds", "ratio", *(f"at {units.size(budget)}" for budget in budgets),
        "test, at the end", "cut bytes", "total bytes", "cut factor", "client", "server",
    ]  # fmt: skip
    lines = [heads, ["---"] * len(heads)]
    for one, cost in zip(groups, costs, strict=True):
        reached = [one.at(budget) for budget in budgets]
        cut = one.mean(lambda s: s.cut_bytes)
        lines.append([
            one.label, str(len(one.runs)), units.NONE if one.ratio is None else units.decimal(one.ratio, 3),
            *(percents(found) if found else units.NONE for found in reached), percents(one.accuracy),
            units.size(cut), units.size(one.mean(lambda s: s.total_bytes)),
            units.factor(one.mean(lambda s: s.raw_bytes), cut),
            units.decimal(cost.client_ratio, 3), units.decimal(cost.server_ratio, 3),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def last(run: Run) -> float:
    """Return the accuracy on the validation split after the last round."""
    return next(row.eval_accuracy for row in reversed(run.rounds) if row.eval_accuracy is not None)


def total_table(groups: list[Group], budgets: list[int], weigh: int | None) -> str:
    """Return a table in Markdown of what was reached by total bytes, or at the end where no budgets are named. `weigh`
    is what the images weigh of runs that do not tell."""
    reached = [f"at {units.size(budget)}" for budget in budgets] or ["validation, at the end"]
    heads = ["method", "seeds", *reached, "test, at the end", "total bytes", "of what the images weigh"]
    lines = [heads, ["---"] * len(heads)]
    for one in groups:
        found = [one.at(budget, "total") for budget in budgets] or [one.spread(last)]
        sent, images = one.sent("total"), one.images_bytes or weigh
        lines.append([
            one.label, str(len(one.runs)), *(percents(spread) if spread else units.NONE for spread in found),
            percents(one.accuracy), units.size(sent), units.times(sent, images),
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def place(page: Path, name: str, text: str) -> None:
    """Put a table between its marks on a page."""
    mark = re.compile(rf"(<!-- {re.escape(name)}: table -->\n).*?(\n<!-- end -->)", re.DOTALL)
    found, times = mark.subn(lambda match: match.group(1) + text + match.group(2), page.read_text())
    if not times:
        raise SplitfedError(f"{page}: has no mark <!-- {name}: table --> with an <!-- end --> below it")
    page.write_text(found)


def named(groups: list[Group], patterns: str) -> list[Group]:
    """Return the groups whose label one of the patterns fits, as in `none,adc-*`."""
    found = [pattern.strip() for pattern in patterns.split(",")]
    return [one for one in groups if any(fnmatchcase(one.label, pattern) for pattern in found)]


def pictures(options: argparse.Namespace) -> Path:
    """Return the folder of pictures, made where it is not there yet."""
    folder = options.out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def picture(comparison: Comparison, patterns: str, options: argparse.Namespace) -> None:
    """Draw the methods that patterns name by the bytes of both planes."""
    drawn = named(comparison.grouped("total").groups, patterns)
    with matplotlib.rc_context(STYLE):
        save(curves(drawn, "total"), pictures(options) / f"{options.sweep.name}-total.png")


def main() -> None:
    """Write the files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep's runs")
    parser.add_argument(
        "--at", action="append", metavar="SIZE", help=f"a budget; by cut bytes {', '.join(BUDGETS)} if not given"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the folder of tables and pictures")
    parser.add_argument("--page", type=Path, help="the page to put the table on")
    parser.add_argument("--draw", default="*", metavar="PATTERNS", help="methods to draw, as in 'none,adc-*'")
    parser.add_argument("--draw-total", metavar="PATTERNS", help="those to draw by total bytes; as --draw if not given")
    parser.add_argument("--by", choices=("cut", "total"), default="cut", help="whose bytes the budgets are")
    parser.add_argument("--weigh", type=size, metavar="SIZE", help="what the images weigh, where runs do not tell")
    options = parser.parse_args()
    budgets = [size(text) for text in options.at or (BUDGETS if options.by == "cut" else ())]
    try:
        folders = sorted(folder for folder in options.sweep.iterdir() if folder.is_dir())
        comparison = compare(folders)
        if options.by == "total":
            found = total_table(comparison.grouped("total").groups, budgets, options.weigh)
            if options.draw_total:
                picture(comparison, options.draw_total, options)
            if options.page:
                place(options.page, f"{options.sweep.name}-total", found)
            print(found)
            return
        grouped = comparison.grouped("ratio")
        groups = grouped.groups[::-1]
        costs = [operations(one) for one in groups]
        rows = [row(one, budgets, cost) for one, cost in zip(groups, costs, strict=True)]
        options.out.mkdir(parents=True, exist_ok=True)
        with open(options.out / f"{options.sweep.name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        draw(named(groups, options.draw), pictures(options) / f"{options.sweep.name}.png")
        picture(comparison, options.draw_total or options.draw, options)
        found = table(groups, budgets, costs)
        if options.page:
            place(options.page, options.sweep.name, found)
    except (SplitfedError, OSError) as error:
        parser.exit(2, f"{error}\n")
    print(found)
    for folder, reason in grouped.left_out:
        print(f"left out: {folder}: {reason}")


if __name__ == "__main__":
    main()
