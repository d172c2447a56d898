"""The event files hold every point that a run reported, and nothing else."""

import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from splitfed.reports.live.tensorboard import Curves, curves_of
from splitfed.run.ledger import Ledger, Row, Sizes, Totals
from splitfed.run.metrics import EXITS, EXITS_HEADER, Metrics, exit_lines
from splitfed.run.observer import Figures, Started
from splitfed.run.summary import Summary

Points = dict[str, list[tuple[int, float]]]
Rounds = list[tuple[Metrics, Totals, Totals]]


def make_rounds(folder: Path, count: int, seed: int = 0, big: int = 1) -> Rounds:
    """Count random rows into a ledger, after those of a round 0, and report every second round with an evaluation."""
    draw = random.Random(seed)
    ledger = Ledger(folder, 1)
    ledger.add([Row(0, 0, 3, "down", "control", "metrics", Sizes(77, 77, 77, 77))])
    ledger.commit()
    ledger.forget_open()
    rounds: Rounds = []
    for number in range(1, count + 1):
        roles = [("up", "data", "smashed"), ("down", "data", "cut_gradient"), ("up", "data", "envelope"),
                 ("down", "control", "front_weights"), ("up", "control", "envelope")]  # fmt: skip
        if number == 2:
            roles.append(("up", "data", "parts"))
        for step in (1, 2):
            ledger.add(
                [
                    Row(number, step, 0, *role, Sizes(*(draw.randrange(1, 10**6 * big) for _ in range(4))))  # type: ignore[arg-type]
                    for role in roles
                ]
            )
        sent = ledger.commit()
        ledger.forget_open()
        sums = ledger.finished
        evaluated = number % 2 == 0
        metrics = Metrics(
            number, draw.random(), draw.random() if evaluated else None, draw.random() if evaluated else None,
            sums.cut.sent, sums.total.sent, 1.5 * number, sums.cut.raw, sums.total.raw, 500, 5, 0.1 / number, 0.2,
            number % 3, 7.5 * number,
        )  # fmt: skip
        rounds.append((metrics, sent, sums))
    return rounds


def summary(rounds: Rounds, wasted: int = 0) -> Summary:
    metrics = rounds[-1][0]
    return Summary(
        "digits", 4, "inline", metrics.round, 0.8619, metrics.cut_bytes, metrics.total_bytes + wasted, wasted,
        metrics.cut_raw_bytes, 1.0, 1.0, metrics.seconds, 0.51, 0.9, metrics.total_raw_bytes, "rounds", "adc", "sfl-v1",
    )  # fmt: skip


def start(folder: Path, history: Rounds | None = None) -> Curves:
    curves = Curves()
    known = [(metrics, sent) for metrics, sent, _ in history or []]
    curves.started(Started("digits", folder, 9, "inline", len(known), known, None))
    return curves


def expected(rounds: Rounds, end: Summary | None = None) -> Points:
    """The points as the documentation of the tags has them, computed anew."""
    points: Points = defaultdict(list)
    seen: set[tuple[str, str]] = {("down", "metrics")}
    for metrics, sent, sums in rounds:
        at = {"": metrics.round, "by_cut_bytes/": metrics.cut_bytes, "by_total_bytes/": metrics.total_bytes}
        if metrics.simulated_seconds is not None:
            at["by_simulated_time/"] = round(metrics.simulated_seconds)
        for axis, step in at.items():
            for group, name in (("loss", "train"), ("loss", "eval"), ("accuracy", "eval")):
                value = getattr(metrics, f"{name}_{group}")
                if value is not None:
                    points[f"{group}/{axis}{name}"].append((step, value))
        seen |= {(direction, role) for _, direction, role in sent.sums}
        for direction, role in seen:
            of_role = [s for (_, d, r), s in sent.sums.items() if (d, r) == (direction, role)]
            points[f"round_MB/{direction}/{role}"].append((metrics.round, sum(s.sent for s in of_role) / 1e6))
            so_far = [s for (_, d, r), s in sums.sums.items() if (d, r) == (direction, role)]
            for stage in ("raw", "reduced", "coded", "sent"):
                total = sum(getattr(s, stage) for s in so_far)
                points[f"stages_MB/{direction}/{role}/{stage}"].append((metrics.round, total / 1e6))
        for tag, value in (
            ("sum_MB/cut", metrics.cut_bytes / 1e6), ("sum_MB/total", metrics.total_bytes / 1e6),
            ("factor/cut", metrics.cut_raw_bytes / metrics.cut_bytes),
            ("factor/total", metrics.total_raw_bytes / metrics.total_bytes),
            ("lr/client", metrics.client_lr), ("lr/server", metrics.server_lr), ("time/seconds", metrics.seconds),
            ("clients/lost", metrics.lost), ("time/simulated", metrics.simulated_seconds),
        ):  # fmt: skip
            points[tag].append((metrics.round, value))
    if end is not None:
        for name, value in (
            ("test_accuracy", end.test_accuracy), ("test_loss", end.test_loss), ("wasted_MB", end.bytes_wasted / 1e6)
        ):  # fmt: skip
            points[f"final/{name}"] = [(0, value), (end.rounds, value)]
    return {tag: [(step, float(np.float32(value))) for step, value in series] for tag, series in points.items()}


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(curves_of(folder)), size_guidance={"tensors": 0}).Reload()


def written(folder: Path) -> Points:
    events = read(folder)
    tags = [tag for tag in events.Tags()["tensors"] if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"]
    return {tag: [(e.step, make_ndarray(e.tensor_proto).item()) for e in events.Tensors(tag)] for tag in tags}


@pytest.mark.parametrize("big", [1, 10**6])
def test_all_points_of_a_run(tmp_path: Path, big: int) -> None:
    rounds = make_rounds(tmp_path, 5, big=big)
    curves = start(tmp_path)
    for each in rounds:
        curves.round(*each)
    curves.finished(end := summary(rounds, wasted=12_345), rounds[-1][2])
    assert written(tmp_path) == expected(rounds, end)


def test_exits_have_curves_of_their_own_also_after_a_resume(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 3)
    accuracies = {1: {1: 0.25, 3: 0.5}, 2: {1: 0.375, 3: 0.75}}
    (tmp_path / EXITS).write_text(EXITS_HEADER + "".join(exit_lines(*one) for one in accuracies.items()))
    curves = start(tmp_path, rounds[:2])
    curves.exited(3, {1: 0.5, 3: 1.0})
    curves.round(*rounds[2])
    curves.close()
    points = written(tmp_path)
    assert points["exits/block_1"] == [(1, 0.25), (2, 0.375), (3, 0.5)]
    assert points["exits/block_3"] == [(1, 0.5), (2, 0.75), (3, 1.0)]
    assert any("exits" in title for title in charts(tmp_path)["accuracy"])


def test_the_last_points_are_the_sums_of_the_ledger(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 4, big=10**6)
    curves = start(tmp_path)
    for each in rounds:
        curves.round(*each)
    curves.close()
    points, sums = written(tmp_path), rounds[-1][2]
    assert sums.total.sent > 2**32, "more than float32 can hold, or the test shows nothing"
    assert points["loss/by_total_bytes/train"][-1][0] == sums.total.sent
    assert points["loss/by_cut_bytes/train"][-1][0] == sums.cut.sent
    assert points["sum_MB/total"][-1][1] == np.float32(sums.total.sent / 1e6)
    assert points["sum_MB/cut"][-1][1] == np.float32(sums.cut.sent / 1e6)


def test_a_round_can_be_seen_when_it_is_reported(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 3)
    curves = start(tmp_path)
    for number, each in enumerate(rounds, 1):
        curves.round(*each)
        assert written(tmp_path) == expected(rounds[:number])
    curves.close()


def test_a_resumed_run_drops_what_lies_after_its_checkpoint(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 5)
    killed = start(tmp_path)
    for metrics, sent, sums in rounds:
        killed.round(replace(metrics, train_loss=99.0), sent, sums)  # never closed

    curves = start(tmp_path, rounds[:2])
    assert written(tmp_path) == expected(rounds[:2])
    for each in rounds[2:]:
        curves.round(*each)
    curves.finished(end := summary(rounds), rounds[-1][2])
    assert written(tmp_path) == expected(rounds, end), "as if it had never been interrupted"
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    killed.close()


def test_the_relative_time_is_that_of_the_run(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 4)
    now = time.time()
    curves = start(tmp_path, rounds[:2])
    for each in rounds[2:]:
        curves.round(*each)
    curves.interrupted(tmp_path, 4, rounds[-1][2])
    times = [event.wall_time for event in read(tmp_path).Tensors("loss/train")]
    assert [round(at - times[0], 3) for at in times] == [0.0, 1.5, 3.0, 4.5]
    assert 0 <= times[1] - now < 60, "the last round before the pause ended when the run goes on"


def charts(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The charts of the layout: category, title, the tags that each shows."""
    events = read(folder)
    found = Layout.FromString(make_ndarray(events.Tensors("custom_scalars__config__")[0].tensor_proto).item())
    tags = written(folder)
    return {
        category.title: {
            chart.title: [tag for tag in tags for pattern in chart.multiline.tag if re.match(pattern, tag)]
            for chart in category.chart
        }
        for category in found.category
    }  # fmt: skip


@pytest.mark.parametrize(("asks", "cut"), [(False, True), (True, True), (False, False)])
def test_the_layout_begins_with_accuracy_by_total_bytes_and_has_nothing_empty(
    tmp_path: Path, asks: bool, cut: bool
) -> None:
    rounds = make_rounds(tmp_path, 4)
    curves = Curves()
    curves.started(Started("digits", tmp_path, 9, "inline", 0, [], None, asks))
    for metrics, sent, sums in rounds:
        planes = {key: sizes for key, sizes in sums.sums.items() if cut or key[0] != "data"}
        told = {"clients_accuracy": 0.5, "worst_client": 0.1, "median_client": 0.5, "best_client": 0.9} if asks else {}
        curves.round(replace(metrics, **told, **({} if cut else {"cut_bytes": 0})), sent, Totals(planes))
    curves.finished(summary(rounds), rounds[-1][2])
    found = charts(tmp_path)
    first = next(iter(found))
    assert (first, next(iter(found[first].values()))) == ("accuracy", ["accuracy/by_total_bytes/eval"])
    assert all(tags for of in found.values() for tags in of.values())
    assert any("clients" in category for category in found) == asks
    groups = {tag.split("/")[0] for of in found.values() for tags in of.values() for tag in tags}
    assert {"round_MB", "sum_MB"} <= groups
    for of in found.values():
        for tags in of.values():
            kinds = {tag.split("/")[0] for tag in tags}
            assert len(kinds) == 1, "sums so far and bytes of a round do not stand in one chart"


def test_every_tag_says_what_it_is_and_accuracy_comes_first(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 4)
    curves = start(tmp_path)
    for each in rounds:
        curves.round(*each)
    curves.finished(summary(rounds), rounds[-1][2])
    tags, events = written(tmp_path), read(tmp_path)
    assert sorted(tags)[0].startswith("accuracy/"), "TensorBoard shows groups in the order of their names"
    for tag in tags:
        said = events.SummaryMetadata(tag).summary_description
        assert said.endswith("."), tag
        assert ("MB" in said) == ("MB" in tag), tag
        assert ("smoothing" in said) == tag.startswith(("sum_MB/", "stages_MB/", "time/")), tag
    assert all(len(points) > 1 for tag, points in tags.items() if tag.startswith("final/")), "no lone dots"


def test_accuracy_and_loss_stand_by_what_the_images_weigh_too(tmp_path: Path) -> None:
    """In thousandths of it, as clients join and it grows."""
    rounds = make_rounds(tmp_path, 4)
    figures = iter([Figures(None, 0, weight) for weight in (4000, 4000, 8000, 8000)])
    curves = Curves()
    curves.started(Started("digits", tmp_path, 9, "inline", 0, [], None, figures=lambda: next(figures)))
    for each in rounds:
        curves.round(*each)
    curves.finished(replace(summary(rounds), images_factor=7.5), rounds[-1][2])
    points = written(tmp_path)
    for name in ("loss/train", "loss/eval", "accuracy/eval"):
        group, _, of = name.partition("/")
        by_round = dict(points[name])
        found = [
            (1000 * row.total_bytes // weight, by_round[row.round])
            for (row, _, _), weight in zip(rounds, (4000, 4000, 8000, 8000), strict=True)
            if row.round in by_round
        ]
        assert points[f"{group}/by_images/{of}"] == found
    assert points["final/images_factor"] == [(0, 7.5), (4, 7.5)]
    assert ["accuracy/by_images/eval"] in charts(tmp_path)["accuracy"].values()


def test_the_table_of_runs_names_curves_that_there_are(tmp_path: Path) -> None:
    rounds = make_rounds(tmp_path, 4)
    curves = start(tmp_path)
    for each in rounds:
        curves.round(*each)
    curves.finished(summary(rounds), rounds[-1][2])
    content = read(tmp_path).SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = [info.name.tag for info in HParamsPluginData.FromString(content).experiment.metric_infos]
    assert "final/test_accuracy" in metrics
    assert set(metrics) <= set(written(tmp_path))


def test_what_an_earlier_version_wrote_is_replaced_too(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host").touch()
    curves = start(tmp_path, make_rounds(tmp_path, 2))
    curves.close()
    assert list((tmp_path / "tensorboard").iterdir()) == [curves_of(tmp_path)]


def test_tensorboards_own_loader_shows_all_points(tmp_path: Path) -> None:
    """The data server that a plain `tensorboard --logdir` starts reads less than its Python loader does."""
    pytest.importorskip("tensorboard_data_server")
    from tensorboard import context
    from tensorboard.data import server_ingester

    rounds = make_rounds(tmp_path, 3)
    curves = start(tmp_path)
    for each in rounds:
        curves.round(*each)
    curves.finished(end := summary(rounds), rounds[-1][2])
    try:
        binary = server_ingester.get_server_binary()
    except server_ingester.NoDataServerError as error:
        pytest.skip(f"no data server here: {error}")
    ingester = server_ingester.SubprocessServerDataIngester(
        server_binary=binary, logdir=str(tmp_path), reload_interval=0, channel_creds_type=_local(),
        samples_per_plugin={}, extra_flags=["--host=127.0.0.1"],
    )  # fmt: skip
    ingester.start()
    found = ingester.data_provider.read_scalars(
        context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=1000
    )
    points = {tag: [(p.step, p.value) for p in series] for tag, series in found[f"tensorboard/{tmp_path.name}"].items()}
    assert points == expected(rounds, end)


def _local() -> object:
    from tensorboard.util.grpc_util import ChannelCredsType

    return ChannelCredsType.LOCAL


def test_tensorboard_is_imported_by_a_run_alone() -> None:
    loads = "import sys, splitfed.reports.live.tensorboard"
    code = f"{loads}; print(any(m.split('.')[0] in ('tensorboard', 'torch') for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
