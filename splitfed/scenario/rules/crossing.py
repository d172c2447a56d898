"""Rules of the model that is cut, and of what crosses the cut and how it is made smaller."""

from splitfed.compression.reducers.settings import NoneConfig
from splitfed.data.settings import DataConfig
from splitfed.model.optim_settings import SideConfig
from splitfed.model.settings import ModelConfig
from splitfed.scenario.budget import BudgetConfig
from splitfed.scenario.compression import CacheConfig, Compression, Packing
from splitfed.scenario.rules.base import Found, leave_out
from splitfed.scenario.sections import Federation, Training

# Packings of what crosses the cut, and of the layers that a reducer brings.
_OF_THE_CUT = ("smashed", "targets", "cut_gradient", "parts")
_OF_THE_TAIL = ("tail_smashed", "tail_gradient")
_AS_THEY_ARE = ("float32", "float16", "bfloat16")


def clip_is_of_what_crosses(federation: Federation) -> Found:
    """Only what a client sends can be shortened."""
    clip = federation.clip
    if clip.smashed is not None and not federation.splits:
        yield "federation.clip.smashed", "with fl no activations leave a client: leave it out"
    if clip.tail_gradient is not None and not (federation.splits and federation.private):
        yield (
            "federation.clip.tail_gradient",
            "only with labels: private does a gradient come up: leave it out, or set labels: private",
        )


def reducer_takes_the_batches(compression: Compression, training: Training) -> Found:
    """A reducer can work on mini-batches of this size."""
    reducer = compression.reducer
    if problem := reducer.problem(training.batch_size):
        yield "compression.reducer", f"{reducer.kind}: {problem}"


def loaded_weights_are_in_a_file(compression: Compression, model: ModelConfig) -> Found:
    """Clients can load only what lies somewhere, and where they are."""
    key = "compression.front_weights.initial"
    if compression.front_weights.initial == "send":
        return
    if not model.pretrained and model.weights is None:
        yield key, "the model's weights are drawn, so there are none to load: set it to send, or model.pretrained"
    if getattr(compression.reducer, "weights", None) is not None:
        yield key, "the reducer's layers come from a file of the server's, compression.reducer.weights: set it to send"


def copies_are_of_single_samples(compression: Compression, data: DataConfig, federation: Federation) -> Found:
    """Both ends can keep a copy of a sample only where what crosses is of one sample, and that comes again."""
    reducer, keys = compression.reducer, [f"compression.{key}" for key in compression.remembers]
    if not keys:
        if compression.cache != CacheConfig():
            yield "compression.cache", "nothing is kept without delta or skip: leave it out, or set smashed.delta"
        return
    if not federation.splits:
        return  # as `what_is_packed_crosses` says
    if reducer.ragged:
        yield (
            keys[0],
            f"the reducer {reducer.kind} sends other tokens of a sample at each visit, and another number of them: "
            "leave it out, or set a reducer that keeps as many of each, such as discard_tokens",
        )
    elif reducer.noisy:
        yield (
            keys[0],
            f"with the reducer {reducer.kind} noise makes a sample another at each visit: leave it out, or set another "
            "reducer",
        )
    elif not reducer.single:
        yield (
            keys[0],
            f"the reducer {reducer.kind} makes samples of several images, of which none comes again: leave it out, or "
            "set a reducer that merges none, such as discard_tokens",
        )
    if data.augment != "none" and data.variants is None:
        yield (
            keys[0],
            f"with augment: {data.augment} an image is another at each visit: set data.variants, such as 2, or "
            "data.augment: none",
        )


def symbols_cross_as_they_are(compression: Compression, federation: Federation) -> Found:
    """What stands for the symbols of a channel is not rounded once more."""
    reducer, codec = compression.reducer, compression.smashed.codec
    if federation.splits and reducer.noisy and codec.kind not in _AS_THEY_ARE:
        yield (
            "compression.smashed.codec",
            f"{codec.kind}: the reducer {reducer.kind} sends what a channel leaves of its symbols, and noise is all "
            f"that it does to them: set one of {', '.join(_AS_THEY_ARE)}",
        )


def what_is_packed_crosses(compression: Compression, federation: Federation) -> Found:
    """What does not cross in a mode cannot be made smaller."""
    if federation.splits and federation.private:
        if compression.targets.codec != Packing().codec:
            yield "compression.targets.codec", "with federation.labels: private no targets cross: leave it out"
        return
    roles = _OF_THE_TAIL if federation.splits else (*_OF_THE_CUT, *_OF_THE_TAIL)
    keys = [role for role in roles if getattr(compression, role) != Compression.model_fields[role].default]
    if federation.splits:
        why, way = "only with federation.labels: private is there a second cut", "set that"
    else:
        why, way = "with fl nothing crosses a cut, weights are packed by front_weights", "set another federation.mode"
        keys = [*([] if isinstance(compression.reducer, NoneConfig) else ["reducer"]), *keys]
    yield from leave_out("compression", keys, why, f", or {way}")


def budget_can_be_spent(budget: BudgetConfig, federation: Federation) -> Found:
    """Cut bytes are spent only where there is a cut."""
    if not federation.splits and budget.of == "cut":
        yield (
            "budget.kind",
            "with fl nothing crosses a cut to spend it: set it to none, rounds end the run, or to total_bytes or "
            "images",
        )


def tail_is_of_private_labels(model: ModelConfig, federation: Federation) -> Found:
    """A client holds the end of the model only where labels stay with it."""
    tail = model.tail
    if tail is not None and not federation.private:
        yield (
            "federation",
            f"model.tail is {tail}, but only with labels: private does a client hold a tail: leave it out, or set "
            "labels: private",
        )


def server_trains_what_it_holds(training: Training, federation: Federation) -> Found:
    """With `fl` the server holds nothing that it could train."""
    if federation.splits:
        return
    server = training.server
    plain = SideConfig(device=server.device)
    keys = [name for name in SideConfig.model_fields if getattr(server, name) != getattr(plain, name)]
    yield from leave_out("training.server", keys, "with fl clients train the whole model, as training.client says")
