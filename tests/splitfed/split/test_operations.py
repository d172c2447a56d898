"""What a step computes: against the products of a Vision Transformer, counted by hand."""

from math import log2

import pytest
import torch
from helpers import small

from splitfed import estimate
from splitfed.compression.reducers.samples.merging import kept, kept_tokens
from splitfed.reports.costs.text import text
from splitfed.split.computing.operations import Operations, count
from splitfed.split.computing.seconds import Work

# As tests/helpers.py has it, but 17 tokens: 16 of 2 x 2 pixels, and the class token.
BATCH, IMAGE, PATCH, TOKENS, WIDTH, CLASSES = 16, 8, 2, 17, 16, 10
FINE = "model.args={patch_size: 2, embed_dim: 16, depth: 2, num_heads: 2}"
DEEP = "model.args.depth=3"
PLAIN = "compression.reducer=none"


def counted(*overrides: str) -> Operations:
    return count(small(FINE, *overrides))


def block(tokens: int, width: int = WIDTH) -> int:
    """Forward and backward of one block: queries, keys and values, two products of attention, projection, two layers
    of the perceptron four times as wide. The gradient of a product is two products of the same size."""
    forward = 2 * tokens * width * (3 * width + width + 2 * 4 * width) + 2 * 2 * tokens**2 * width
    return 3 * forward


def front() -> int:
    patches = 2 * (TOKENS - 1) * (3 * PATCH**2) * WIDTH
    return 2 * patches + block(TOKENS)  # images need no gradient


def back(tokens: int) -> int:
    return block(tokens) + 3 * 2 * WIDTH * CLASSES


def test_without_reduction_it_is_the_model_and_nothing_else() -> None:
    found = counted(PLAIN)
    # Without backward: a third of it, but a half where the embedding's input needs no gradient.
    patches = 2 * (TOKENS - 1) * (3 * PATCH**2) * WIDTH
    forward = {"front_forward": patches + block(TOKENS) // 3, "back_forward": back(TOKENS) // 3}
    assert found == Operations(front(), 0, back(TOKENS), 0, back(TOKENS), BATCH, **forward)
    assert (found.client_ratio, found.server_ratio) == (1, 1)


def test_it_grows_with_the_blocks_of_each_side() -> None:
    found = count(small("model.args={patch_size: 2, embed_dim: 16, depth: 5, num_heads: 2}", "model.cut=3"))
    assert (found.front, found.back) == (front() + 2 * block(TOKENS), back(TOKENS) + block(TOKENS))


def test_exits_are_a_product_each_with_its_gradients() -> None:
    plain, head = counted(DEEP, PLAIN), 2 * (2 * WIDTH) * CLASSES
    for regime, products in (("joint", 3), ("disjoint", 2)):  # nobody asks for the gradient of what a block made
        found = counted(DEEP, PLAIN, f"model.exits={{blocks: [1, 2], regime: {regime}}}")
        assert found.front - plain.front == found.back - plain.back == products * head
        assert (found.front_forward, found.back_forward) == (plain.front_forward, plain.back_forward)


def test_topk_leaves_the_server_what_it_had() -> None:
    for kind in ("topk", "random_topk"):
        found = counted(f"compression.reducer={{kind: {kind}, ratio: 0.1}}")
        assert (found.server_ratio, found.client_ratio) == (1, 1)


def test_a_server_with_half_of_the_tokens_does_half() -> None:
    found = counted("compression.reducer={kind: discard_tokens, kept_tokens: 0.5}")
    assert found.back == back(kept_tokens(0.5, TOKENS, 1)) == back(8)
    assert found.client_ratio == 1
    assert 0.4 < found.server_ratio < 0.5


def test_adc_adds_k_means_and_averages_to_the_client() -> None:
    found = counted("compression.reducer={kind: adc, kept_samples: 0.5, kept_tokens: 0.5, iterations: 1}")
    clusters, tokens = kept(0.5, BATCH), kept_tokens(0.5, TOKENS, 1)
    assert found.back == back(tokens) * clusters / BATCH  # so no cluster was empty
    product = 2 * BATCH * clusters
    kmeans = 3 * product * TOKENS  # distances, means, distances
    averages = product * (TOKENS + CLASSES + 2 * tokens * WIDTH)  # attention, labels, activations and their gradient
    assert found.reducing * BATCH == kmeans + averages


def test_more_iterations_of_k_means_count() -> None:
    few = "{{kind: adc, kept_samples: 0.1, kept_tokens: 0.5, iterations: {}}}"  # 64 points take a while to settle
    one, two = (counted("training.batch_size=64", f"compression.reducer={few.format(i)}") for i in (1, 2))
    assert two.reducing - one.reducing == 2 * 2 * kept(0.1, 64) * TOKENS


def test_an_auxiliary_net_computes_at_the_client_in_a_local_phase() -> None:
    """Of a back of one block the net is a copy of all of it; a second block is one more."""
    assert counted(PLAIN).taught == 0
    assert counted(PLAIN, "phases=[{kind: local}]").taught == front() + back(TOKENS)
    deep = "model.args={patch_size: 2, embed_dim: 16, depth: 5, num_heads: 2}"
    two = count(small(deep, "phases=[{kind: local, rounds: 1}, {kind: local, blocks: 2}]"))
    assert two.taught == front() + back(TOKENS) + block(TOKENS)
    # What is packed is packed of every fifth mini-batch.
    bottleneck = "compression.reducer={kind: bottleneck, width: 4, hidden: 6}"
    layers = 3 * 2 * TOKENS * (WIDTH * 6 + 6 * 4)
    fifth = counted(bottleneck, "phases=[{kind: local, upload_every: 5}]")
    assert fifth.taught == front() + back(TOKENS) + layers / 5
    # To fit a net is ten passes there and back, and back again through both.
    once, never = (
        counted(PLAIN, f"phases=[{{kind: local, upload_every: 1, align_every: {n}}}]").taught for n in (1, 0)
    )
    assert 10 < (once - never) / back(TOKENS) < 40
    rarely = counted(PLAIN, "phases=[{kind: local, upload_every: 2, align_every: 5}]").taught
    assert rarely - never == (once - never) / 10


def made_up(width: int, gradients: int = 3) -> int:
    """Beside each sample that a head of this width sees, so many products of which are for the sample itself, by what
    FRAug says of a step; the first layer of what learns gives no gradient to what it is given."""
    noise, inner, head = width // 2, width // 2, 2 * width * CLASSES
    generator = 2 * (noise + CLASSES) * width, 2 * width * width
    change = 2 * (width + CLASSES) * inner, 2 * inner * width
    means = 2 * width * CLASSES
    loss = 2 * (sum(generator) + sum(change) + 2 * head) + gradients * head
    of_generator = 2 * generator[0] + 3 * generator[1] + 2 * head
    of_change = sum(generator) + 2 * change[0] + 3 * change[1] + 2 * head
    return means + loss + of_generator + 2 * of_change


FRAUG, PRIVATE = "training.client.fraug={}", "federation.labels=private"


def test_features_that_are_made_up_are_products_beside_each_sample() -> None:
    plain, found = counted(DEEP, PLAIN, PRIVATE), counted(DEEP, PLAIN, PRIVATE, FRAUG)
    assert found.tail - plain.tail == found.plain_tail - plain.plain_tail == made_up(WIDTH)
    assert (found.front, found.back, found.client_ratio) == (plain.front, plain.back, 1)
    # Half of the samples reach the tail.
    merged = [counted(DEEP, PRIVATE, "compression.reducer={kind: merge_samples, kept_samples: 0.5}", *more)
              for more in ((), (FRAUG,))]  # fmt: skip
    assert merged[1].tail - merged[0].tail == made_up(WIDTH) / 2
    whole = [counted("federation.mode=fl", "training.server={}", *more) for more in ((), (FRAUG,))]
    assert whole[1].client - whole[0].client == made_up(WIDTH)
    for regime, gradients in (("joint", 3), ("disjoint", 2)):
        exits = f"model.exits={{blocks: [1, 2], regime: {regime}}}"
        pair = [counted(DEEP, PLAIN, exits, "phases=[{kind: local}]", *more) for more in ((), (FRAUG,))]
        extra = made_up(2 * WIDTH, gradients)
        assert pair[1].making_up == pair[1].front - pair[0].front == pair[1].taught - pair[0].taught == extra
        assert (pair[1].front_forward, pair[1].back) == (pair[0].front_forward, pair[0].back)


@pytest.mark.parametrize(
    "overrides",
    [[PRIVATE], ["model.exits={blocks: [1]}"], ["model.exits={blocks: [1]}", "phases=[{kind: local, upload_every: 1}]"],
     ["federation.mode=fl", "training.server={}"]],
    ids=["private", "exits", "local", "fl"],
)  # fmt: skip
def test_a_device_takes_its_time_for_them(overrides: list[str]) -> None:
    plan = small(FINE, DEEP, FRAUG, *overrides, "federation.profiles={phone: {share: 1, device: {flops: 1MFLOPS}}}")
    work, told = Work(plan), count(plan)
    work.classes = CLASSES
    spent = work.training(0, BATCH, plan.phase(1), True, None)
    each = told.taught or told.client
    assert sum(spent.before) + spent.after == pytest.approx(BATCH * each / 1e6)
    still = Work(plan.with_(["training.client.fraug=null"]))
    still.classes = CLASSES
    without = still.training(0, BATCH, plan.phase(1), True, None)
    more = BATCH * made_up((2 if plan.model.exits else 1) * WIDTH) / 1e6
    assert sum(spent.before) - sum(without.before) == pytest.approx(more)  # all of it before the last frame goes out


def test_bottleneck_adds_its_layers_to_both_sides() -> None:
    found = counted("compression.reducer={kind: bottleneck, width: 4, hidden: 6}")
    layers = 3 * 2 * TOKENS * (WIDTH * 6 + 6 * 4)
    assert (found.reducing, found.restoring) == (layers, layers)
    assert found.back == back(TOKENS)


def test_c3sl_adds_fourier_transforms_however_often_it_is_counted() -> None:
    first, again = (counted("compression.reducer={kind: c3sl, r: 4}", "seed=11") for _ in range(2))
    assert first == again  # the keys of a run are drawn once, which is no part of a step
    size, groups = TOKENS * WIDTH, BATCH // 4
    real = 2.5 * size * log2(size)
    # at the least: to the spectrum and back, for samples and sums, forward and backward
    least = 2 * (BATCH + groups) * real
    for added in (first.reducing, first.restoring):
        assert least <= added * BATCH <= 2 * least


def test_codecs_count_where_they_multiply() -> None:
    rotated = "{kind: uniform, bits: 2, rotation: true}"
    found = counted(f"compression.smashed.codec={rotated}")
    assert found.reducing == found.restoring == 2 * TOKENS * WIDTH * WIDTH  # blocks of 16 features
    assert found.client_ratio > 1
    assert counted("compression.smashed.codec={kind: uniform, bits: 2}").reducing == 0
    fedlite = counted("compression.smashed.codec={kind: fedlite, subvectors: 4, centroids: 4}")
    assert fedlite.reducing > 0 == fedlite.restoring


def test_the_size_of_a_mini_batch_matters_to_clusters_only() -> None:
    assert counted("training.batch_size=8").front == counted(PLAIN).front
    few, many = (counted("compression.reducer={kind: adc, ratio: 0.5}", f"training.batch_size={n}") for n in (8, 32))
    assert (few.examples, many.examples) == (8, 32)
    assert few.reducing < many.reducing  # each sample is compared with more centres


def test_counting_leaves_no_gradients_and_draws_nothing() -> None:
    from splitfed.seeds import Key
    from splitfed.split.assembly import assemble
    from splitfed.split.computing.operations import count_step
    from splitfed.split.cut import Cut

    scenario = small(FINE, "model.args.drop_path_rate=0.5", "phases=[{kind: local, align_every: 1}]")
    parts = assemble(scenario, CLASSES)
    cut = Cut(scenario.compression, parts.front.geometry(BATCH, CLASSES), torch.device("cpu"))
    before = torch.get_rng_state()
    count_step(parts, cut, scenario, BATCH, Key(0))
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for part in parts for p in part.parameters())


def test_an_estimate_tells_the_operations() -> None:
    found = estimate(small(FINE, "compression.reducer={kind: discard_tokens, kept_tokens: 0.5}"))
    assert found.operations == counted("compression.reducer={kind: discard_tokens, kept_tokens: 0.5}")
    line = next(line for line in text(found).splitlines() if line.startswith("operations"))
    assert line.split(maxsplit=1)[1] == (
        f"client {front() / 1000:.2f} kFLOP an image (1.00x uncompressed), "
        f"server {back(8) / 1000:.2f} kFLOP ({back(8) / back(TOKENS):.2f}x)"
    )
