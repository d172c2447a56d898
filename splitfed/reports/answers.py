"""How predictions are written: lines for people, CSV, or JSON, each as soon as it is there."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from splitfed.inference.predictor import Prediction
from splitfed.scenario.document import printable

Write = Callable[[Prediction], None]


@contextmanager
def text(top: int, exits: bool) -> Iterator[Write]:
    """Write a line for each: the image, the class, its probability, and with exits who answered."""

    def write(found: Prediction) -> None:
        name = printable(found.image)
        if found.problem is not None:
            print(f"{name}: {printable(found.problem)}", file=sys.stderr, flush=True)
            return
        likely = ", ".join(f"{printable(label)} {share:.1%}" for label, share in found.probabilities.items())
        who = f"  ({_who(found)})" if exits or found.alone else ""
        print(f"{name}: {likely}{who}", flush=True)

    yield write


@contextmanager
def lines_of_json(top: int, exits: bool) -> Iterator[Write]:
    """Write an object a line: `image`, and `label`, `confidence`, `probabilities` and `exit`, with `alone` where a
    server did not help, or `problem`."""

    def write(found: Prediction) -> None:
        said: dict[str, object] = {"image": found.image}
        if found.problem is None:
            said |= {
                "label": found.label, "confidence": found.confidence, "probabilities": found.probabilities,
                "exit": found.exit,
            }  # fmt: skip
            said |= {} if found.alone is None else {"alone": found.alone}
        else:
            said |= {"problem": found.problem}
        print(json.dumps(said, ensure_ascii=True), flush=True)

    yield write


@contextmanager
def table(top: int, exits: bool) -> Iterator[Write]:
    """Write a heading and a row for each: image, label, confidence, exit (empty: the whole model), problem, why a
    server did not help (alone), and the `top` classes with their probabilities where these are more than one."""
    more = [name for place in range(2, top + 1) for name in (f"label_{place}", f"probability_{place}")]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "label", "probability", "confidence", "exit", "problem", "alone", *more])

    def write(found: Prediction) -> None:
        likely = list(found.probabilities.items())
        first = likely[0] if likely else ("", "")
        rest = [value for pair in likely[1:] for value in pair]
        sure = "" if found.confidence is None else found.confidence
        writer.writerow([
            found.image, *first, sure, "" if found.exit is None else found.exit, found.problem or "",
            found.alone or "", *rest,
        ])  # fmt: skip
        sys.stdout.flush()

    yield write


def _who(found: Prediction) -> str:
    who = "the whole model" if found.exit is None else f"exit after block {found.exit}"
    return who if found.alone is None else f"{who}, alone: {printable(found.alone)}"


WRITERS: dict[str, Callable[[int, bool], AbstractContextManager[Write]]] = {
    "text": text, "csv": table, "json": lines_of_json,
}  # fmt: skip
