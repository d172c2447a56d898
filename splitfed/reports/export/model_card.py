"""The card of an exported model, as the Hugging Face Hub shows it: what it was trained on, how, and what that sent."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from splitfed.model.build import pixel_stats
from splitfed.reports import units
from splitfed.reports.plain import code, code_block, markdown
from splitfed.run.ledger import Sizes, Totals, totals_by_round
from splitfed.run.metrics import Metrics, read_metrics
from splitfed.run.summary import NAME as SUMMARY
from splitfed.run.summary import Summary
from splitfed.scenario import Scenario
from splitfed.scenario.yaml import write, write_line
from splitfed.version import __version__

_LONGEST_LIST = 200  # classes; more would be all that the card is


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a model comes from: a run's scenario and the round, with that round's metrics (None for round 0), the bytes
    up to it, and the summary if the run ended there."""

    scenario: Scenario
    round: int
    metrics: Metrics | None
    totals: Totals
    summary: Summary | None

    @classmethod
    def read(cls, run: Path, scenario: Scenario, round: int) -> Self:
        """Read it from a run folder. Raises RunError where its files are broken."""
        rounds = read_metrics(run / "metrics.csv")
        by_round = totals_by_round(run / "ledger.csv")
        summary = Summary.read(run) if (run / SUMMARY).exists() else None
        return cls(
            scenario, round, next((row for row in rounds if row.round == round), None),
            sum((totals for number, totals in by_round.items() if number <= round), Totals()),
            summary if summary is not None and summary.rounds == round else None,
        )  # fmt: skip


def card(
    origin: Provenance, classes: list[str], create: str, file: str, parameters: int, sha256: str, halves: str | None,
    added: str | None = None,
) -> str:  # fmt: skip
    """Return the text of a card: YAML for the Hub, then Markdown; `halves` names the file of a reducer's own layers,
    and `added` that of what an adapter has added."""
    scenario = origin.scenario
    model = scenario.model
    mean, std = (", ".join(f"{value:g}" for value in values) for values in pixel_stats(model))
    parts = [
        f"---\n{write(_front_matter(origin, whole=not (halves or added)))}---",
        f"# {markdown(scenario.name)}: {markdown(model.name)}",
        f"An image classifier of {len(classes)} classes, trained by federated {_learning(scenario)} What crossed "
        f"between them was counted. Made by splitfed {__version__}.",
        "## Use\n\n" + code_block(_use(create, file), "python"),
        f"Images are RGB: the short side resized to {model.image_size} pixels (bicubic), the middle square cut out, "
        f"values from 0 to 1, then less the mean ({mean}) and divided by the standard deviation ({std}).",
        f"{code(_config(file))} says the same to timm, and names the classes: beside `model.safetensors`, and with "
        "`config.json` as its name, it makes the folder one that timm loads: "
        '`timm.create_model("local-dir:FOLDER", pretrained=True)`.',
        f"{code(file)} holds {parameters:,} parameters under timm's names. Its SHA-256 is `{sha256}`.",
        _left_out(scenario, halves) if halves else "",
        _not_folded(scenario, added) if added else "",
        "## Classes\n\n" + _classes(classes),
        "## Training\n\n" + _table(("", ""), _facts(origin)),
        "## Accuracy\n\n" + _table(("split", "accuracy"), _accuracy(origin)),
        "## Bytes\n\n"
        "Raw is what float32 without compression would take, sent what crossed, the factor raw over sent.\n\n"
        + _table(("plane", "direction", "raw", "sent", "factor"), _bytes(origin))
        + _images(origin),
        "## Settings\n\n"
        "The complete scenario; files of the machine that trained are shown by their names alone.\n\n"
        + code_block(write(_portable(scenario.model_dump(mode="json"))), "yaml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(create: str, file: str) -> str:
    """Return the lines of Python that make a prediction."""
    return f"""\
import json

import timm
from PIL import Image

model = {create}.eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = json.load(open({json.dumps(_config(file), ensure_ascii=False)}))["label_names"]
print(names[model(transform(Image.open("image.png").convert("RGB")).unsqueeze(0)).argmax()])"""


def _config(file: str) -> str:
    return str(Path(file).with_suffix(".json"))


def _learning(scenario: Scenario) -> str:
    clients = scenario.federation.clients
    if not scenario.federation.splits:
        return f"learning: {clients} clients held the images and trained the whole model, a server averaged theirs."
    end = f", the last {scenario.tail} with the head, and the labels" if scenario.tail is not None else ""
    return (
        f"split learning: {clients} clients held the images and the model up to block {scenario.cut_in_words}{end}, a "
        "server the rest."
    )


def _front_matter(origin: Provenance, *, whole: bool) -> dict[str, Any]:
    scenario = origin.scenario
    found: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": [
            "image-classification",
            "timm",
            "splitfed",
            "federated-learning",
            *(["split-learning"] if scenario.federation.splits else []),
        ],
    }
    data = _data_set(scenario)
    on_the_hub = "/" in data and not Path(scenario.data.path).exists()
    if on_the_hub:
        found["datasets"] = [data]
    if scenario.model.pretrained and scenario.model.weights is None:
        found["base_model"] = f"timm/{scenario.model.name}"
    found["metrics"] = ["accuracy"]
    # With layers left out, the accuracy is not that of the file.
    if origin.summary is not None and whole:
        metric = {"type": "accuracy", "name": "test accuracy", "value": origin.summary.test_accuracy}
        of = {"type": data if on_the_hub else "image-folder", "name": data, "split": scenario.data.test_split}
        result = {"task": {"type": "image-classification"}, "dataset": of, "metrics": [metric]}
        found["model-index"] = [{"name": scenario.name, "results": [result]}]
    return found


def _left_out(scenario: Scenario, halves: str) -> str:
    return (
        f"**The layers of the reducer `{scenario.compression.reducer.kind}` are not in it.** The run trained and "
        "evaluated front, encoder, decoder, back; timm's model is front and back alone, and the accuracy below not its "
        f"own. The layers are in {code(halves)}, as `encoder.*`, `decoder.*` and `gates.*`."
    )


def _not_folded(scenario: Scenario, added: str) -> str:
    return (
        f"**What the adapter `{scenario.model.adapter.kind}` has added is not in it**, for no layers of timm's model "
        "compute the same. The run trained and evaluated it with the rest, and the accuracy below is not that of "
        f"timm's model. It is in {code(added)}, by the names of the layers that it is added to."
    )


def _classes(classes: list[str]) -> str:
    if classes == [str(number) for number in range(len(classes))]:
        return f"0 to {len(classes) - 1}, by their numbers"
    listed = ", ".join(f"{number}: {markdown(name)}" for number, name in enumerate(classes[:_LONGEST_LIST]))
    return listed + (f" and {len(classes) - _LONGEST_LIST} more" if len(classes) > _LONGEST_LIST else "")


def _facts(origin: Provenance) -> list[tuple[str, ...]]:
    scenario = origin.scenario
    federation, compression = scenario.federation, scenario.compression
    steps, epochs = federation.local_steps, federation.local_epochs
    passes = f"local steps in each: {steps}" if steps else f"local epochs in each: {epochs}"
    ended = ", then the budget was spent" if origin.summary and origin.summary.stopped == "budget" else ""
    rows = [("reducer", _settings(compression.reducer))] if federation.splits else []
    roles = ("smashed", "cut_gradient") if federation.splits else ()
    for role in (*roles, *(("tail_smashed", "tail_gradient") if federation.private else ()), "front_weights"):
        packing = getattr(compression, role)
        rows.append((role.replace("_", " "), f"{_settings(packing.codec)}, lossless {packing.lossless.kind}"))
    return [
        ("scenario", markdown(scenario.name)),
        ("data set", markdown(_data_set(scenario))),
        ("mode", federation.mode),
        ("labels", "with the clients" if federation.private or not federation.splits else "sent to the server"),
        ("clients", f"{federation.clients}, {federation.cohort_size} in a round"),
        ("rounds", f"{origin.round} of {federation.rounds}{ended}; {passes}"),
        ("seed", str(scenario.seed)),
        *rows,
    ]


def _accuracy(origin: Provenance) -> list[tuple[str, ...]]:
    validation = origin.metrics.eval_accuracy if origin.metrics else None
    test = origin.summary.test_accuracy if origin.summary else None
    return [
        (split, units.percent(share) if share is not None else "not measured after this round")
        for split, share in (("validation", validation), ("test", test))
    ]


def _bytes(origin: Provenance) -> list[tuple[str, ...]]:
    def row(plane: str, direction: str, sizes: Sizes) -> tuple[str, ...]:
        factor = units.factor(sizes.raw, sizes.sent)
        return plane, direction, units.size(sizes.raw), units.size(sizes.sent), factor

    rows = []
    for plane, name in (("data", "cut"), ("control", "control")):
        rows += [row(name, way, origin.totals.select(plane=plane, direction=way)) for way in ("up", "down")]
        rows.append(row(name, "both", origin.totals.select(plane=plane)))
    wasted = origin.summary.bytes_wasted if origin.summary else 0
    if wasted:
        rows.append(("wasted", "", "", units.size(wasted), ""))
    rows.append(row("total", "both", origin.totals.total + Sizes(sent=wasted)))
    return rows


def _images(origin: Provenance) -> str:
    """Return what was sent beside what the images weigh; nothing where nothing tells, or the run went on."""
    summary = origin.summary
    if summary is None or not summary.images_bytes:
        return ""
    source = ", as clients reported it" if summary.images_reported else ""
    times = units.times(summary.total_bytes, summary.images_bytes)
    return (
        f"\n\nIn all {times} what the images weigh as they are stored, {units.size(summary.images_bytes)}{source}: "
        "those that clients trained on or held out, once each."
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _settings(section: Any) -> str:
    return code(write_line(_portable(section.model_dump(mode="json"))))


def _data_set(scenario: Scenario) -> str:
    return _portable(scenario.data.path)


def _portable(value: Any) -> Any:
    """Replace paths of one machine by their last part."""
    if isinstance(value, dict):
        return {key: _portable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "..", "./"))):
        return Path(value).name
    return value
