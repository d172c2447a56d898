"""What the keys of a scenario do to a run, end to end."""

import gc
import json

import pytest
import torch
from helpers import ADC, PLAIN, few, small, table
from safetensors.torch import load_file

from splitfed import simulate
from splitfed.compression.expect import Geometry
from splitfed.errors import Diverged, RunError, SplitfedError
from splitfed.model.build import Back, Front
from splitfed.model.optim import pick_device
from splitfed.run.observer import Observer
from splitfed.scenario.budget import uncompressed_epoch
from splitfed.server.cohort.attendance import Attendance


def model(result) -> dict[str, torch.Tensor]:
    (newest,) = sorted((result.folder / "checkpoints").iterdir())[-1:]
    return load_file(newest / "model.safetensors")


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_same_seed_same_bits(mode, tmp_path):
    plan = small(*ADC, f"federation.mode={mode}", "federation.cohort=2", "data.augment=flip")
    torch.manual_seed(1)
    one = simulate(plan, runs=tmp_path)
    torch.manual_seed(2)  # no global state may matter
    two = simulate(plan, runs=tmp_path)
    assert (one.folder / "ledger.csv").read_text() == (two.folder / "ledger.csv").read_text()
    assert table(one.folder / "metrics.csv", "seconds") == table(two.folder / "metrics.csv", "seconds")
    assert same(model(one), model(two))
    other = simulate(plan.with_(["seed=1"]), runs=tmp_path)
    assert not same(model(one), model(other))


def test_dropout_is_drawn_by_key(tmp_path):
    plan = small("model.args.drop_path_rate=0.3", "federation.rounds=1")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = simulate(plan, runs=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(model(one), model(simulate(plan, runs=tmp_path)))
    assert not same(model(one), model(simulate(small("federation.rounds=1"), runs=tmp_path)))


def test_loader_processes_change_nothing(tmp_path):
    plan = small("federation.rounds=1", "data.augment=paper")
    one = simulate(plan, runs=tmp_path)
    assert same(model(one), model(simulate(plan.with_(["data.workers=2"]), runs=tmp_path)))


def test_sfl_v1_does_not_depend_on_the_order_of_clients(tmp_path, monkeypatch):
    plan = small("federation.mode=sfl-v1", "federation.rounds=1")
    one = simulate(plan, runs=tmp_path)
    sample = Attendance.sample
    monkeypatch.setattr(Attendance, "sample", lambda self, round, there: sample(self, round, there)[::-1])
    two = simulate(plan, runs=tmp_path)
    for name, tensor in model(one).items():
        torch.testing.assert_close(model(two)[name], tensor, rtol=1e-6, atol=1e-7)


def test_modes_differ_with_several_clients(tmp_path):
    one, two = (simulate(small(f"federation.mode={m}"), runs=tmp_path) for m in ("sfl-v1", "sfl-v2"))
    assert not same(model(one), model(two))


def test_a_kept_optimiser_goes_on_where_a_reset_one_starts_anew(tmp_path):
    """Momentum from the round before changes the second one; without it nothing is stored."""
    base = (*PLAIN, "federation.clients=1", "federation.rounds=2")
    momentum = "training.client.optimiser={kind: sgd, lr: 0.05, momentum: 0.9}"
    kept = simulate(small(*base, momentum, "training.client_state=keep"), runs=tmp_path)
    reset = simulate(small(*base, momentum), runs=tmp_path)
    assert not same(model(kept), model(reset))
    states = sorted((kept.folder / "clients" / "000000").iterdir())
    assert [path.name for path in states] == ["000001.safetensors", "000002.safetensors"]
    assert not (reset.folder / "clients").exists()


def test_local_steps_bound_a_round(tmp_path):
    result = simulate(small("federation.local_epochs=null", "federation.local_steps=3"), runs=tmp_path)
    rows = [r for r in table(result.folder / "ledger.csv") if r["role"] == "smashed"]
    assert len(rows) == 2 * 3 * 3  # rounds, clients, steps


def test_a_cohort_is_sampled_without_repetition(tmp_path):
    result = simulate(small("federation.clients=6", "federation.cohort=2", "federation.rounds=5"), runs=tmp_path)
    rows = [r for r in table(result.folder / "ledger.csv") if r["role"] == "smashed"]
    cohorts = [{r["client"] for r in rows if r["round"] == str(number)} for number in range(1, 6)]
    assert all(len(cohort) == 2 for cohort in cohorts)
    assert len(set().union(*cohorts)) > 2
    assert [metrics.clients for metrics in result.rounds] == [2] * 5


def test_a_budget_in_bytes_stops_before_the_next_round(tmp_path):
    free = simulate(small(*ADC, "federation.rounds=4"), runs=tmp_path)
    second = free.rounds[1].cut_bytes
    for limit, expected in ((second, 2), (second + 1, 3), (1, 1)):
        plan = small(*ADC, "federation.rounds=4", f"budget={{kind: cut_bytes, bytes: {limit}}}")
        result = simulate(plan, runs=tmp_path)
        assert (result.summary.rounds, result.summary.stopped) == (expected, "budget")
        assert result.rounds[-1].eval_accuracy is not None  # the last round is always evaluated
        assert result.rounds == [
            free.rounds[i].__class__(**{**_fields(free.rounds[i]), "seconds": result.rounds[i].seconds})
            for i in range(expected)
        ]
    assert free.summary.stopped == "rounds"


def _fields(row) -> dict:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def test_the_papers_budget_counts_uncompressed_epochs(tmp_path):
    geometry = Geometry(16, 5, 16, 1, 10)
    assert uncompressed_epoch(96, geometry) == 96 * (2 * 4 * 5 * 16 + 8)
    plan = small(*PLAIN, "federation.rounds=9", "budget={kind: uncompressed_epochs, epochs: 2}")
    result = simulate(plan, runs=tmp_path)
    assert result.summary.rounds == 2
    assert result.summary.raw_bytes == 2 * uncompressed_epoch(96, geometry)


ALL = [*ADC, "federation.rounds=4", "evaluation.held_out=0.2"]


def test_a_budget_in_total_bytes_counts_all_that_is_sent(tmp_path):
    free = simulate(small(*ALL), runs=tmp_path)
    second = free.rounds[1].total_bytes
    for limit, expected in ((second, 2), (second + 1, 3)):
        plan = small(*ALL, f"budget={{kind: total_bytes, bytes: {limit}}}")
        result = simulate(plan, runs=tmp_path)
        assert (result.summary.rounds, result.summary.stopped) == (expected, "budget")
        assert [row.total_bytes for row in result.rounds] == [row.total_bytes for row in free.rounds[:expected]]
        assert result.rounds[-1].eval_accuracy is not None
        rows = table(result.folder / "ledger.csv")
        assert result.summary.total_bytes == sum(int(row["sent_bytes"]) for row in rows)
        assert {"evaluation", "front_weights", "metrics", "envelope"} <= {row["role"] for row in rows}


def test_with_fl_too_a_budget_in_total_bytes_counts_what_crosses(tmp_path):
    plan = ["federation.mode=fl", "training.server={}", "federation.rounds=4", "evaluation.held_out=0.2"]
    free = simulate(small(*plan), runs=tmp_path)
    for limit, expected in ((free.rounds[1].total_bytes, 2), (free.rounds[1].total_bytes + 1, 3)):
        result = simulate(small(*plan, f"budget={{kind: total_bytes, bytes: {limit}}}"), runs=tmp_path)
        assert (result.summary.rounds, result.summary.stopped, result.summary.cut_bytes) == (expected, "budget", 0)


def test_a_budget_of_images_is_a_multiple_of_what_those_weigh_that_clients_hold(tmp_path):
    images = 64 * 96  # digits; validation images are not among them
    free = simulate(small(*ALL), runs=tmp_path)
    assert (free.summary.images_bytes, free.summary.images_reported) == (images, False)
    assert free.summary.images_factor == free.summary.total_bytes / images
    second = free.rounds[1].total_bytes
    for total, expected in ((second // images, 2), (second // images + 1, 3)):
        result = simulate(small(*ALL, f"budget={{kind: images, times: {total}}}"), runs=tmp_path)
        assert (result.summary.rounds, result.summary.stopped) == (expected, "budget")
    assert f"{second // images + 1} times what the images weigh" in (result.folder / "log.txt").read_text()


def test_a_budget_that_joining_spends_leaves_no_round(tmp_path):
    result = simulate(small("budget={kind: total_bytes, bytes: 1}"), runs=tmp_path)
    assert (result.summary.rounds, result.summary.stopped, result.rounds) == (0, "budget", [])
    assert result.summary.cut_bytes == 0 < result.summary.total_bytes


def test_evaluation_every_other_round(tmp_path):
    result = simulate(small("federation.rounds=5", "training.evaluate_every=2"), runs=tmp_path)
    assert [m.eval_accuracy is not None for m in result.rounds] == [False, True, False, True, True]


def test_schedules_set_the_rates(tmp_path):
    plan = small("training.client.schedule={kind: cosine, warmup_rounds: 1, final: 0.1}", "federation.rounds=4")
    result = simulate(plan, runs=tmp_path)
    assert [m.client_lr for m in result.rounds] == pytest.approx([0.5e-3, 1e-3, 0.55e-3, 0.1e-3])
    assert [m.server_lr for m in result.rounds] == [1e-3] * 4


@pytest.mark.parametrize("labels", [(), ("federation.labels=private", "model.tail=0")], ids=["shared", "private"])
def test_bfloat16_trains_and_differs(labels, tmp_path):
    half, full = (
        simulate(small(f"training.precision={precision}", "federation.rounds=1", *labels), runs=tmp_path)
        for precision in ("bfloat16", "float32")
    )
    assert not same(model(half), model(full))
    for name, tensor in model(full).items():
        assert model(half)[name].dtype == torch.float32
        torch.testing.assert_close(model(half)[name], tensor, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "reducer",
    ["none", "{kind: adc, ratio: 0.2}", "{kind: merge_samples, kept_samples: 0.5}",
     "{kind: discard_tokens, kept_tokens: 0.6}"],
)  # fmt: skip
@pytest.mark.parametrize("codec", ["float32", "float16", "bfloat16", "{kind: uniform, bits: 3, rounding: nearest}"])
def test_reducers_and_codecs_go_together(reducer, codec, tmp_path):
    sets = [f"compression.{role}.codec={codec}" for role in ("smashed", "targets", "cut_gradient", "front_weights")]
    # 17 images in batches of 16: the last batch of one sample goes through everything.
    plan = small(
        f"compression.reducer={reducer}", *sets, "data.limit=17", "federation.clients=1", "federation.rounds=1"
    )
    result = simulate(plan, runs=tmp_path)
    assert result.summary.cut_factor > (0.9 if codec == "float32" else 1.5)


def test_training_learns(tmp_path):
    """Well above the 10 % of chance on ten classes, with everything compressed too."""
    rates = [f"training.{side}.optimiser.lr=5e-3" for side in ("client", "server")]
    easy = ["federation.clients=1", "federation.rounds=6", "training.batch_size=8", "data.limit=500"]
    for compression in (PLAIN, ADC):
        summary = simulate(small(*compression, *rates, *easy, "data.test_limit=300"), runs=tmp_path).summary
        assert summary.test_accuracy > 0.25, compression  # the least of three seeds was 49 %


def test_divergence_is_one_clear_error(tmp_path):
    plan = small("training.client.optimiser={kind: sgd, lr: 1e30}", "training.server.optimiser={kind: sgd, lr: 1e30}")
    with pytest.raises(Diverged, match=r"round \d, client \d, step \d: the training diverges"):
        simulate(plan, runs=tmp_path)


def _answering(monkeypatch, change, client: int = 1) -> None:
    """Let a client answer otherwise; `change` gets its honest reply."""
    from splitfed.engines.inline import InlineGrid

    deliver = InlineGrid.deliver

    def dishonest(self, message):
        reply = deliver(self, message)
        theirs = message.metadata.message_type == "train" and reply.metadata.src_node_id == client + 2
        return change(reply) if theirs else reply

    monkeypatch.setattr(InlineGrid, "deliver", dishonest)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("num-examples", 33, "32 were announced"),
        ("train-loss", float("nan"), "'train-loss' is nan"),
        ("bonus", 1, "it has 'bonus'"),
    ],
)
@pytest.mark.parametrize("mode", ["sfl-v1", "sfl-v2"])
def test_a_client_that_lies_is_left_out(mode, key, value, why, tmp_path, monkeypatch):
    def lie(reply):
        reply.content["metrics"][key] = value
        return reply

    plan = small(f"federation.mode={mode}", "federation.rounds=1")
    honest = simulate(plan, runs=tmp_path)
    _answering(monkeypatch, lie)
    result = simulate(plan, runs=tmp_path)
    log = (result.folder / "log.txt").read_text()
    assert "round 1: client 1 failed: reply refused" in log
    assert why in log
    assert not same(model(honest), model(result))  # its front is not in the average
    assert all(tensor.isfinite().all() for tensor in model(result).values())


def test_a_client_without_an_answer_is_left_out_and_none_is_an_error(tmp_path, monkeypatch):
    from flwr.app import Error, Message

    def silent(reply):
        return Message(Error(1, "out of battery"), metadata=reply.metadata)

    _answering(monkeypatch, silent)
    result = simulate(small("federation.rounds=1"), runs=tmp_path)
    assert "round 1: client 1 failed: out of battery" in (result.folder / "log.txt").read_text()
    _answering(monkeypatch, silent, client=0)
    alone = small("federation.rounds=1", "federation.clients=1")
    with pytest.raises(RunError, match="round 1: no client finished: out of battery"):
        simulate(alone, runs=tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "gpu0", ""])
def test_a_device_that_is_not_there_is_one_line(device):
    with pytest.raises(RunError, match="try --device auto") as caught:
        pick_device(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mistake", ["training.server.device=cuda:99", "data.path=/nowhere", "model.weights=/no.pt"])
def test_a_run_that_could_not_begin_leaves_no_folder(mistake, tmp_path):
    with pytest.raises(SplitfedError) as caught:
        simulate(small(mistake), runs=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", few(["sfl-v1", "sfl-v2"]))
def test_models_in_memory_do_not_grow_with_clients(mode, tmp_path):
    """One front per worker and one copy of the back, however many clients there are and take part."""
    counts = []
    for clients in (3, 40):
        seen = []

        class Census(Observer):
            def round(self, metrics, sent, finished, seen=seen) -> None:
                gc.collect()
                seen.append(sum(isinstance(o, Front | Back) for o in gc.get_objects()))

        plan = small(f"federation.clients={clients}", "federation.cohort=3", f"federation.mode={mode}")
        simulate(plan, runs=tmp_path, observers=(Census(),))
        counts.append(seen[-1])
    assert counts[0] == counts[1]


def test_a_run_folder_holds_what_it_promises(tmp_path):
    result = simulate(small("federation.rounds=1", "name=mine"), runs=tmp_path)
    assert result.folder.name.startswith("mine-")
    names = {path.name for path in result.folder.iterdir()} - {".lock"}
    assert names == {
        "scenario.yaml", "metrics.csv", "ledger.csv", "wasted.csv", "tensorboard", "checkpoints", "environment.json",
        "log.txt", "summary.json",
    }  # fmt: skip
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment[0]["torch_threads"] == 1
    assert "test accuracy" in (result.folder / "log.txt").read_text()
    assert simulate(small("federation.rounds=1", "name=mine"), runs=tmp_path).folder != result.folder
