"""The rules between keys and sections of a scenario: what each of them may be alone, but not together.

Each rule takes, by their names, the sections that it reads, whose keys are valid one by one. It yields the keys that do
not go with others, each with the reason and the way out. All rules run after validation, whatever the order of fields.
"""

from contextlib import suppress
from inspect import signature

from pydantic import BaseModel

from splitfed.scenario.rules import adapters, adaptive, crossing, cuts, exits, federation, phases, time, varying
from splitfed.scenario.rules.base import Found, Rule

RULES: tuple[Rule, ...] = (
    federation.cohort_is_of_the_clients,
    federation.order_is_of_a_shared_back,
    federation.wave_is_of_those_at_once,
    federation.patience_is_of_joint_steps,
    federation.private_labels_need_whole_mini_batches,
    federation.ahead_is_of_gradients_on_their_way,
    federation.checkpointing_is_of_weights_that_stay,
    federation.chunks_are_of_a_mini_batch,
    federation.compiled_blocks_run_alone,
    federation.local_norms_are_learned,
    federation.steps_or_epochs,
    federation.strategy_has_something_to_aggregate,
    crossing.clip_is_of_what_crosses,
    time.availability_is_of_a_simulation,
    time.link_is_of_a_simulation,
    time.devices_are_of_a_simulation,
    time.profiles_are_all_clients,
    time.computing_is_told_once,
    time.oversample_takes_more_than_the_cohort,
    time.deadline_is_on_a_clock,
    phases.phases_fill_the_rounds,
    phases.phases_are_of_a_front,
    phases.phases_teach_the_back,
    phases.chunks_are_of_nets_that_learn_by_themselves,
    phases.memory_is_of_a_frozen_front,
    phases.memory_is_of_fixed_images,
    phases.memory_alters_what_is_alike,
    phases.nets_are_fitted_to_what_goes_up,
    phases.copies_are_of_samples_that_come_again,
    phases.memory_is_gone_over,
    cuts.cuts_are_of_a_front,
    cuts.whole_model_is_cut_as_some_are,
    cuts.uneven_fronts_have_a_mean,
    cuts.exits_are_of_one_side,
    adaptive.blocks_that_train_are_there,
    adaptive.budgets_follow_each_mini_batch,
    adaptive.budgets_see_whole_mini_batches,
    adaptive.fewer_tokens_can_be_sent,
    exits.exits_are_where_labels_are,
    exits.cascades_are_of_one_side,
    exits.exits_see_whole_tokens,
    exits.exits_learn_in_some_round,
    exits.fraug_is_of_a_head_at_the_client,
    exits.disjoint_exits_change_nothing_else,
    adapters.parts_take_turns_where_they_cross,
    adapters.parts_are_sent_whole,
    adapters.parts_are_made_of_one_round,
    crossing.tail_is_of_private_labels,
    crossing.server_trains_what_it_holds,
    crossing.reducer_takes_the_batches,
    crossing.loaded_weights_are_in_a_file,
    crossing.copies_are_of_single_samples,
    crossing.symbols_cross_as_they_are,
    crossing.what_is_packed_crosses,
    federation.evaluation_asks_of_the_clients,
    crossing.budget_can_be_spent,
    federation.engine_waits_longer_than_a_joint_step,
    varying.what_ends_keep_is_alike,
    varying.weights_that_are_kept_are_alike,
    varying.memory_is_of_one_reducer,
    varying.points_are_of_what_crosses,
    varying.points_differ,
    varying.targets_are_on_a_clock,
)


def breaks(rule: Rule, scenario: BaseModel) -> Found:
    """Yield the keys of a scenario that break a rule, as `section.key`, each with the reason and the way out. A rule of
    `compression` is one of what takes its place for some clients or rounds, too."""
    sections = {section: getattr(scenario, section) for section in signature(rule).parameters}
    found = list(rule(**sections))
    yield from found
    if "compression" not in sections or rule.__module__ == varying.__name__:
        return
    for place, part in varying.parts(scenario.federation, scenario.control):  # type: ignore[attr-defined]
        for key, why in rule(**{**sections, "compression": part.over(sections["compression"])}):
            if key.startswith("compression") and (key, why) not in found:
                yield place + key.removeprefix("compression"), why


def broken(scenario: BaseModel) -> Found:
    """Yield every key of a scenario that breaks a rule, as `section.key`, with the reason and the way out."""
    for rule in RULES:
        yield from breaks(rule, scenario)


def broken_in_part(scenario: BaseModel) -> Found:
    """Yield what is broken in a scenario that lacks some of its fields: a rule that would read one of them is silent
    about it."""
    for rule in RULES:
        with suppress(AttributeError):
            yield from breaks(rule, scenario)
