"""Scenarios that break a rule each: what stands in a comment is the beginning of the problem that its line has."""

SMALL = """\
model: {name: m, cut: 1, image_size: 8}
data: {path: digits}
federation:
  clients: 10
  rounds: 3
"""
UNEVEN = "  profiles: {phone: {share: 0.5}, hospital: {share: 0.5, cut: 2}}\n"
CONTROL = """\
control:
  kind: drift_plus_penalty
  target: {kind: all_bytes, bytes: 1MB}
"""


def exits(keys: str, why: str = "", key: str = ".blocks", section: str = "exits") -> str:
    """Return a scenario with exits, or another section of the model, of which one key is wrong, or none."""
    problem = f"  # model.{section}{key}: {why}" if why else ""
    return SMALL.replace("image_size: 8}", f"image_size: 8, {section}: {{{keys}}}}}{problem}")


def adapter(settings: str, why: str) -> str:
    return SMALL.replace("8}", f"8, adapter: {settings}}}  # model.{why}")


PARTS = adapter("{kind: hydra, parts: 2}", "adapter.parts: is 2: parts cross in turn")
# What follows, for each rule. A comment is the beginning of the problem that its line has.
BREAKS = {
    "cohort_is_of_the_clients": [
        "  cohort: 20  # federation.cohort: 20 of 10 clients cannot be sampled: lower it, or leave it out for all",
    ],
    "order_is_of_a_shared_back": [
        "  mode: sfl-v1\n"
        "  order: arrival  # federation.order: with sfl-v1 clients train at once and in no order: leave it out, or set",
        "  order: arrival  # federation.order: with psl clients train in joint steps: leave it out\n"
        "  mode: psl",
        "  order: arrival  # federation.order: with sl clients train one after another, or there is no front to hand\n"
        "  mode: sl",
    ],
    "wave_is_of_those_at_once": [
        "  wave: 2  # federation.wave: with sfl-v2 clients train one after another: leave it out, or set order",
        "  wave: 2  # federation.wave: with sl clients train one after another: leave it out\n"
        "  mode: sl",
        "  wave: 5  # federation.wave: 5 at once of 4 clients a round: lower it, or leave it out for all\n"
        "  cohort: 4\n"
        "  order: arrival",
    ],
    "patience_is_of_joint_steps": [
        "  patience: 5.0  # federation.patience: with sfl-v2 no client waits for another: leave it out, or set mode",
    ],
    "private_labels_need_whole_mini_batches": [
        "  labels: private  # federation.labels: with fl no labels leave a client anyway: leave it out, or set\n"
        "  mode: fl",
        "  mode: psl\n"
        "  labels: private  # federation.labels: with psl the back takes a step for all clients at once, and each",
        "  labels: private  # federation.labels: with order: arrival another client's update would come between\n"
        "  order: arrival",
    ],
    "ahead_is_of_gradients_on_their_way": [
        "  mode: fl\n"
        "training: {ahead: 1}  # training.ahead: with fl no gradient comes from the server: leave it out, or set",
        "  mode: psl\n"
        "training: {ahead: 1}  # training.ahead: with psl a step is of one mini-batch of each client, and none goes on",
        "  labels: private\n"
        "training: {ahead: 1}  # training.ahead: with federation.labels: private a mini-batch goes up twice",
        "training: {ahead: 1}  # training.ahead: with compression.smashed.delta both ends go on from what has crossed\n"
        "compression: {smashed: {delta: true}}",
        "training: {ahead: 1}  # training.ahead: with compression.smashed.skip both ends go on from what has crossed\n"
        "compression: {smashed: {skip: 0.9}}",
        "training: {ahead: 1}  # training.ahead: with compression.cut_gradient.delta both ends go on from what has\n"
        "compression: {cut_gradient: {delta: true}}",
        "training: {ahead: 1}  # training.ahead: in none of the phases does the front wait for a gradient: leave\n"
        "phases: [{kind: local, rounds: 1}, frozen]",
    ],
    "checkpointing_is_of_weights_that_stay": [
        "training: {ahead: 1, client: {checkpointing: true}}  # training.client.checkpointing: with training.ahead a",
        "training: {ahead: 1, client: {chunk: 4}}  # training.client.chunk: with training.ahead a mini-batch is gone",
    ],
    "chunks_are_of_a_mini_batch": [
        "training: {client: {chunk: 33}}  # training.client.chunk: is 33, more images than a mini-batch has (training",
        "training: {batch_size: 4, client: {chunk: 5}}  # training.client.chunk: is 5, more images than a mini-batch",
    ],
    "compiled_blocks_run_alone": [
        exits("blocks: [1]") + "training: {server: {compile: true}}  # training.server.compile: with model.exits heads",
        "training: {client: {compile: true, chunk: 4}}  # training.client.chunk: compiled blocks are not computed",
    ],
    "local_norms_are_learned": [
        SMALL.replace("image_size: 8}", "image_size: 8, adapter: norms}")
        + "  local_norms: true  # federation.local_norms: with model.adapter: norms nothing of the front would come\n",
        "  local_norms: true  # federation.local_norms: in none of the phases does the front learn: leave it out\n"
        "phases: [frozen]",
    ],
    "steps_or_epochs": [
        "  local_steps: 3  # federation.local_steps: local_epochs is set too: keep one of them and set the other\n"
        "  local_epochs: 1",
    ],
    "strategy_has_something_to_aggregate": [
        "  strategy: FedTrimmedAvg  # federation.strategy: FedTrimmedAvg: beta 0.2 of 4 clients is less than one\n"
        "  cohort: 4",
        "  strategy: FedMedian  # federation.strategy: FedMedian: with sl nothing is aggregated: leave it out, or set\n"
        "  mode: sl",
    ],
    "clip_is_of_what_crosses": [
        "  clip: {smashed: 1.0}  # federation.clip.smashed: with fl no activations leave a client: leave it out\n"
        "  mode: fl",
        "  clip: {tail_gradient: 1.0}  # federation.clip.tail_gradient: only with labels: private does a gradient come",
    ],
    "availability_is_of_a_simulation": [
        "  availability: {kind: drawn, late: 1.0}  # federation.availability: a deployment's clients have their own\n"
        "engine: deployment",
    ],
    "link_is_of_a_simulation": [
        "link: {kind: fixed, up: 5Mbit, down: 9Mbit}  # link: a deployment's clients have their own: set it to ideal\n"
        "engine: deployment",
        "  server: {link: {up: 1Gbit}}  # federation.server.link: with an ideal link all bytes cross at once: leave",
    ],
    "devices_are_of_a_simulation": [
        "  profiles: {phone: {share: 1.0, link: lte}}  # federation.profiles.phone.link: a deployment's clients have \n"
        "engine: deployment",
        "  profiles: {phone: {share: 1.0, device: {flops: 5GFLOPS}}}  # federation.profiles.phone.device.flops: a dep\n"
        "engine: deployment",
        "  server: {device: {flops: 5GFLOPS}}  # federation.server.device: a deployment's server is as fast as it is\n"
        "engine: deployment",
    ],
    "profiles_are_all_clients": [
        "  profiles: {phone: {share: 0.5}, hospital: {share: 0.4}}  # federation.profiles: the shares are 0.9 together",
        "  profiles: {phone: {share: 0.99}, hospital: {share: 0.01}}  # federation.profiles.hospital.share: 0.01 of 10",
    ],
    "computing_is_told_once": [
        "  availability: {kind: drawn, step_seconds: 1.0}\n"
        "  profiles: {phone: {share: 1.0, device: {flops: 5GFLOPS}}}  # federation.profiles.phone.device.flops: fede",
    ],
    "oversample_takes_more_than_the_cohort": [
        "  oversample: 1.5  # federation.oversample: all 10 clients are sampled already: set a smaller cohort",
        "  oversample: 1.5  # federation.oversample: nothing tells the time of a simulation: set federation.availab\n"
        "  cohort: 4",
    ],
    "deadline_is_on_a_clock": [
        "  deadline: 9.0  # federation.deadline: nothing tells the time of a simulation: set federation.availability",
    ],
    "phases_fill_the_rounds": [
        "phases: [{kind: gradient}, frozen]  # phases: phase 1 says no rounds, but the last phase alone takes those",
        "phases: [{kind: gradient, rounds: 3}, frozen]  # phases: those before the last one take 3 rounds, and federat",
        "phases: [{kind: gradient, rounds: 1}, {kind: frozen, rounds: 1}]  # phases: the last one is of 1 rounds,",
    ],
    "phases_are_of_a_front": [
        "  mode: fl\n"
        "phases: [frozen]  # phases: with fl there is no front apart from the rest: leave it out, or set another",
        "  labels: private\n"
        "phases: [frozen]  # phases: with federation.labels: private the tail learns beside the front and crosses",
        "  mode: fl\n"
        "phases: [local]  # phases: with fl there is no front apart from the rest: leave it out, or set another",
        "  labels: private\n"
        "phases: [local]  # phases: with federation.labels: private the tail learns beside the front and crosses",
    ],
    "phases_teach_the_back": [
        "phases: [{kind: local, upload_every: null}]  # phases: with upload_every: null throughout nothing goes",
    ],
    "chunks_are_of_nets_that_learn_by_themselves": [
        "training: {client: {chunk: 4}}  # training.client.chunk: with align_every in phases the auxiliary net is\n"
        "phases: [{kind: local, align_every: 2}]",
    ],
    "memory_is_of_a_frozen_front": [
        "memory: {disk: 1GB}  # memory: is of a front that stays as it is to the end: let the last of phases be froz",
        "phases: [{kind: frozen, rounds: 1}, gradient]\n"
        "memory: {disk: 1GB}  # memory: is of a front that stays as it is to the end: let the last of phases be froz",
    ],
    "memory_is_of_fixed_images": [
        "model: {name: m, cut: 1, image_size: 8}\n"
        "data: {path: digits, augment: flip}\n"
        "federation: {clients: 10, rounds: 3}\n"
        "phases: [frozen]\n"
        "memory: {disk: 1GB}  # memory: with data.augment: flip images never look the same twice: set data.variants",
        "phases: [frozen]\n"
        "memory: {disk: 1GB, variants: 2}  # memory.variants: is 2, and data.variants gives an image 1: lower it",
    ],
    "memory_alters_what_is_alike": [
        "phases: [frozen]\ncompression: {reducer: semantic_tokens}\n"
        "memory: {disk: 1GB, mix: 0.2}  # memory.mix: the reducer semantic_tokens sends samples of different numbers",
    ],
    "nets_are_fitted_to_what_goes_up": [
        "phases: [{kind: local, rounds: 1, upload_every: null, align_every: 2}, frozen]  # phases: phase 1 has align",
    ],
    "copies_are_of_samples_that_come_again": [
        "phases: [frozen]\n"
        "memory: {disk: 1GB}\n"
        "compression:\n"
        "  smashed:\n"
        "    delta: true  # compression.smashed.delta: into memory each sample crosses once, and of none comes a diff",
        "phases: [{kind: local, rounds: 1, upload_every: null}, frozen]\n"
        "memory: {disk: 1GB}\n"
        "compression:\n"
        "  smashed:\n"
        "    skip: 0.9  # compression.smashed.skip: into memory each sample crosses once, and of none comes a differen",
        "phases: [{kind: local, rounds: 1}, frozen]\n"
        "compression:\n"
        "  cut_gradient:\n"
        "    delta: true  # compression.cut_gradient.delta: no gradient comes down in any phase: leave it out, or let",
    ],
    "memory_is_gone_over": [
        "  cohort: 4\n"
        "phases: [frozen]\n"
        "memory: {disk: 1GB}  # memory: all clients send their images in 3 rounds of the last phase, then come 1",
    ],
    "cuts_are_of_a_front": [
        "  mode: fl\n  profiles:\n    phone: {share: 1.0, cut: 1}  # federation.profiles.phone.cut: with fl every"
    ],
    "whole_model_is_cut_as_some_are": [
        SMALL.replace("8}", "8}  # model.cut: is 1, where the whole") + "  profiles: {phone: {share: 1.0, cut: 2}}"
    ],
    "uneven_fronts_have_a_mean": [
        f"{UNEVEN}phases: [local]  # phases: fronts have 1 to 2 blocks, and in a local",
        f"{UNEVEN}  local_norms: true  # federation.local_norms: fronts have 1 to 2 blocks, and norms that are a",
        f"{UNEVEN}  labels: private\ntraining:\n  client: {{fraug: {{}}}}  # training.client.fraug: fronts have 1 to 2",
        exits("kind: alast, trained: 2", "fronts have 1 to 2 blocks, and a block has", "", "adaptive") + UNEVEN,
    ],
    "exits_are_of_one_side": [exits("blocks: [1, 2]", "fronts have 1 to 2 blocks, so a head after bl") + UNEVEN],
    "blocks_that_train_are_there": [
        exits("kind: alast, trained: {front: 2}", "is 2, but the front has 1: lower it", ".trained.front", "adaptive"),
    ],
    "budgets_follow_each_mini_batch": [
        exits("kind: alast, trained: 2", "alast: with psl mini-batches", "", "adaptive") + "  mode: psl",
        exits("kind: alast, trained: 2", section="adaptive") + "phases: [local]  # phases: local: an auxiliary net",
        exits("kind: alast, trained: 2}, adapter: {kind: frozen", "alast: with model.adapter: fro", "", "adaptive"),
    ],
    "budgets_see_whole_mini_batches": [
        exits("kind: alast, trained: 2", section="adaptive")
        + "training:\n  client: {chunk: 4}  # training.client.chunk: with model.adaptive: alast budgets go by whole",
    ],
    "fewer_tokens_can_be_sent": [
        exits("kind: alast, trained: 2", section="adaptive")
        + "compression: {reducer: {kind: adc, ratio: 0.5}}  # compression.reducer: adc: it makes one sample of several",
        exits("kind: alast, trained: 2", section="adaptive")
        + "compression:\n  smashed: {delta: true}  # compression.smashed.delta: with model.adaptive: alast",
    ],
    "exits_are_where_labels_are": [
        exits("blocks: [1, 2]", "with federation.labels: private the server has no labels that a head after block 2")
        + "  labels: private",
    ],
    "cascades_are_of_one_side": [
        exits("blocks: [1, 2], heads: cascade", "in a cascade each head sees what the one before says", ".heads"),
    ],
    "exits_see_whole_tokens": [
        exits("blocks: [1, 2]", "with the reducer semantic_tokens gates run the front as a whole")
        + "compression: {reducer: semantic_tokens}",
    ],
    "exits_learn_in_some_round": [
        exits("blocks: [1], regime: mixed, after: 3", "is 3 of 3 rounds, so the exits never learn: lower it", ".after"),
        exits("blocks: [1], regime: mixed, after: 1", "the front is frozen whenever its exits would learn: name blocks")
        + "phases: [{kind: gradient, rounds: 1}, frozen]",
        exits("blocks: [2], regime: mixed, after: 1", "nothing goes up that the exits of the back could learn from")
        + "phases: [{kind: gradient, rounds: 1}, {kind: local, upload_every: null}]",
    ],
    "fraug_is_of_a_head_at_the_client": [
        "training: {client: {fraug: {}}}  # training.client.fraug: the clients have no head to make up features for",
        exits("blocks: [1]")
        + "training: {ahead: 1, client: {fraug: {}}}  # training.client.fraug: with training.ahead weights change",
        exits("blocks: [1, 2], heads: cascade").replace("cut: 1", "cut: 2")
        + "training: {client: {fraug: {}}}  # training.client.fraug: in a cascade a head also sees what the one before",
    ],
    "disjoint_exits_change_nothing_else": [
        exits("blocks: [1], regime: disjoint")
        + "  clip: {front_weights: 1.0}  # federation.clip.front_weights: with disjoint exits an update's norm",
        exits("blocks: [1], regime: disjoint")
        + "  strategy: {kind: Krum, num_malicious_nodes: 1}  # federation.strategy: Krum measures clients by heads and",
    ],
    "parts_take_turns_where_they_cross": [
        adapter("{kind: hydra, parts: 2, on: both}", "adapter.parts: is 2, and of what follows the front nothing"),
        adapter("{kind: hydra, parts: 4}", "adapter.parts: is 4 of 3 rounds, so some never learn"),
    ],
    "parts_are_sent_whole": [PARTS + "compression: {front_weights: {delta: true}}", PARTS + "phases: [frozen]"],
    "parts_are_made_of_one_round": [
        PARTS.partition("  #")[0] + SMALL.partition("8}")[2] + "  strategy: FedAdam  # federation.strategy: FedAdam",
    ],
    "tail_is_of_private_labels": [
        "model: {name: m, cut: 1, tail: 2, image_size: 8}\n"
        "data: {path: digits}\n"
        "federation:  # federation: model.tail is 2, but only with labels: private does a client hold a tail: leave\n"
        "  clients: 10\n"
        "  rounds: 3",
    ],
    "server_trains_what_it_holds": [
        "  mode: fl\n"
        "training:\n"
        "  server:\n"
        "    device: cpu\n"
        "    clip: 1.0  # training.server.clip: with fl clients train the whole model, as training.client says: leave",
        "  mode: fl\n"
        "training:\n"
        "  server:  # training.server: with fl clients train the whole model, as training.client says: leave out wei\n"
        "    clip: 1.0\n"
        "    weight_decay: 0.5",
    ],
    "reducer_takes_the_batches": [
        "compression:\n"
        "  reducer: {kind: c3sl, r: 4}  # compression.reducer: c3sl: r: 4 does not divide training.batch_size: 30\n"
        "training: {batch_size: 30}",
    ],
    "loaded_weights_are_in_a_file": [
        "compression:\n"
        "  front_weights:\n"
        "    initial: load  # compression.front_weights.initial: the model's weights are drawn, so there are none to",
    ],
    "copies_are_of_single_samples": [
        "compression:\n"
        "  reducer: jscc\n"
        "  smashed: {delta: true}  # compression.smashed.delta: with the reducer jscc noise makes a sample another at",
        "compression:\n"
        "  reducer: {kind: adc, ratio: 0.5}\n"
        "  smashed: {delta: true}  # compression.smashed.delta: the reducer adc makes samples of several images, of",
        "compression:\n"
        "  reducer: {kind: merge_samples, kept_samples: 0.5}\n"
        "  smashed: {skip: 0.9}  # compression.smashed.skip: the reducer merge_samples makes samples of several images",
        "compression:\n"
        "  reducer: {kind: c3sl, r: 2}\n"
        "  cut_gradient: {delta: {kind: float8}}  # compression.cut_gradient.delta: the reducer c3sl makes samples of",
        "model: {name: m, cut: 1, image_size: 8}\n"
        "data: {path: digits, augment: flip}\n"
        "federation: {clients: 10, rounds: 3}\n"
        "compression:\n"
        "  smashed: {delta: true}  # compression.smashed.delta: with augment: flip an image is another at each visit:",
        "compression:\n"
        "  cache: {disk: 1GB}  # compression.cache: nothing is kept without delta or skip: leave it out, or set",
    ],
    "symbols_cross_as_they_are": [
        "compression:\n"
        "  reducer: jscc\n"
        "  smashed:\n"
        "    codec: {kind: uniform, bits: 8}  # compression.smashed.codec: uniform: the reducer jscc sends what a ch",
    ],
    "what_is_packed_crosses": [
        "  mode: fl\n"
        "compression:\n"
        "  smashed: {delta: true}  # compression.smashed: with fl nothing crosses a cut, weights are packed by",
        "compression:\n"
        "  tail_smashed: {codec: float16}  # compression.tail_smashed: only with federation.labels: private is there",
        "  labels: private\n"
        "compression:\n"
        "  targets: {codec: float16}  # compression.targets.codec: with federation.labels: private no targets cross",
        "  mode: fl\n"
        "compression:\n"
        "  reducer: {kind: discard_tokens, kept_tokens: 0.5}  # compression.reducer: with fl nothing crosses a cut, w",
        "  mode: fl\n"
        "preset: medium  # compression: with fl nothing crosses a cut, weights are packed by front_weights: leave out ",
        "  mode: fl\n"
        "compression:  # compression: with fl nothing crosses a cut, weights are packed by front_weights: leave out\n"
        "  smashed: {codec: float16}\n"
        "  parts: {codec: float16}",
    ],
    "evaluation_asks_of_the_clients": [
        "evaluation: {held_out: 0.1, cohort: 11}  # evaluation.cohort: 11 of 10 clients cannot be asked: lower it, or",
    ],
    "budget_can_be_spent": [
        "  mode: fl\n"
        "budget:\n"
        "  kind: cut_bytes  # budget.kind: with fl nothing crosses a cut to spend it: set it to none, rounds end the\n"
        "  bytes: 1MB",
    ],
    "engine_waits_longer_than_a_joint_step": [
        "  mode: psl\n"
        "engine:\n"
        "  kind: ray\n"
        "  deadline: 60.0  # engine.deadline: after 60 s a joint step of psl may still wait for a client: raise it",
    ],
    "what_ends_keep_is_alike": [
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression: {smashed: {codec: float16}}  # federation.profiles.phone.compression: with smashed.skip b\n"
        "compression: {smashed: {skip: 0.99}}",
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression:\n"
        "        front_weights: {delta: true}  # federation.profiles.phone.compression.front_weights.delta: is of the ",
        CONTROL.replace("control:", "control:  # control: with smashed.delta both ends keep samples as they crossed") +
        "  points: {fine: {}, coarse: {compression: {smashed: {codec: float16}}}}\n"
        "compression: {smashed: {delta: true}}\n",
    ],
    "weights_that_are_kept_are_alike": [
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression: {parts: {codec: float16}}  # federation.profiles.phone.compression.parts: with compressio\n"
        "compression: {front_weights: {delta: true}}",
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression:\n"
        "        front_weights: {codec: float16}  # federation.profiles.phone.compression.front_weights: with a froze\n"
        "phases: [{kind: gradient, rounds: 1}, frozen]",
    ],
    "memory_is_of_one_reducer": [
        "  profiles:\n"
        "    phone:\n"
        "      share: 1.0\n"
        "      compression: {reducer: {kind: discard_tokens, kept_tokens: 0.5}}  # federation.profiles.phone.compress\n"
        "phases: [frozen]\n"
        "memory: {}",
    ],
    "points_are_of_what_crosses": [
        "  mode: fl\n" + CONTROL.replace("control:", "control:  # control: with fl nothing crosses a cut: leave it o") +
        "  points: {fine: {}, coarse: {compression: {front_weights: {codec: float16}}}}",
        CONTROL.replace("control:", "control:  # control: what memory takes crosses once, whatever comes after it") +
        "  points: {fine: {}, coarse: {compression: {smashed: {codec: float16}}}}\n"
        "phases: [frozen]\n"
        "memory: {}",
        CONTROL +
        "  points:\n"
        "    fine: {utility: 1.0, gradient_every: 2}\n"
        "    coarse: {}  # control.points.coarse: utility is missing, which other points have: give it to all or to no",
        "  labels: private\n" + CONTROL +
        "  points: {fine: {}, coarse: {gradient_every: 2}}  # control.points.coarse.gradient_every: with federation.la",
        CONTROL +
        "  points: {fine: {}, coarse: {gradient_every: null}}  # control.points.coarse.gradient_every: in no phase do\n"
        "phases: [frozen]",
    ],
    "points_differ": [
        CONTROL +
        "  points:\n"
        "    fine: {}\n"
        "    coarse: {compression: {smashed: {codec: float16}}}\n"
        "    corse: {compression: {smashed: {codec: {kind: float16}}}}  # control.points.corse: is the same as coarse\n"
        "    fein: {compression: {reducer: none}}  # control.points.fein: is the same as fine, for every client\n"
        "    other: {gradient_every: 2}",
    ],
    "targets_are_on_a_clock": [
        "control:\n"
        "  kind: drift_plus_penalty\n"
        "  target: {kind: seconds_per_round, seconds: 20s}  # control.target: seconds_per_round: nothing tells the ti\n"
        "  points: {fine: {}, coarse: {compression: {smashed: {codec: float16}}}}",
        "control:\n"
        "  kind: drift_plus_penalty\n"
        "  target: {kind: all_bytes, bytes: 1MB, seconds: 1h}  # control.target: all_bytes: nothing tells the time of\n"
        "  points: {fine: {}, coarse: {compression: {smashed: {codec: float16}}}}",
    ],
}  # fmt: skip
