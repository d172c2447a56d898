"""What TensorBoard shows of a run: what each tag means, and which curves stand together in a chart."""

from typing import Any

MEGABYTE = 1e6
IMAGES = 1000  # steps that stand for what the images weigh: steps are whole, and TensorBoard writes 1000 as 1k

_WHAT = {
    "accuracy/eval": "Share of the validation split that is right.",
    "clients/accuracy": "Share of the images that clients hold out which is right.",
    "clients/worst": "The same of the client for which it is least.",
    "clients/median": "The same of the client in the middle.",
    "clients/best": "The same of the client for which it is most.",
    "loss/train": "Loss of the mini-batches of a round.",
    "loss/eval": "Loss on the validation split.",
}
_BY = {
    "by_total_bytes": "By all bytes that were sent until then, on both planes.",
    "by_cut_bytes": "By the bytes that crossed the cut until then.",
    "by_images": "By all bytes that were sent until then, on both planes, in thousandths of what the images weigh that "
    "clients hold: 1k is once.",
    "by_simulated_time": "By the seconds that the clients of a simulation would have taken until then.",
}
_SUMS = "A sum: set smoothing to 0."
_STAGES = {
    "raw": "in float32 and not reduced", "reduced": "after the reducer, in float32", "coded": "after the codec",
    "sent": "as sent, after the lossless stage",
}  # fmt: skip
_OTHERS = {
    "final/test_accuracy": "Share of the test split that is right at the end of the run, drawn across all its rounds.",
    "final/test_loss": "Loss on the test split at the end of the run, drawn across all its rounds.",
    "final/images_factor": "How many times what the clients' images weigh was sent in the whole run, wasted bytes too, "
    "drawn across all its rounds.",
    "final/wasted_MB": "MB that interrupted rounds and retries sent, in the whole run, drawn across all its rounds.",
    "sum_MB/cut": f"MB that crossed the cut until the end of a round. {_SUMS}",
    "sum_MB/total": f"MB that were sent until the end of a round, on both planes. {_SUMS}",
    "factor/cut": "How many times fewer bytes crossed the cut than uncompressed, until the end of a round.",
    "factor/total": "How many times fewer bytes were sent on both planes than uncompressed, until the end of a round.",
    "lr/client": "Learning rate of the clients in a round.",
    "lr/server": "Learning rate of the server in a round.",
    "control/queue": "By how much a controller's target is overspent, in rounds' worth: the mean of a round's clients.",
    "control/rate": "Mbit/s that the clients of a round had, both ways, with all that they waited for.",
    "clients/lost": "Clients that were lost in a round.",
    "time/seconds": f"Seconds that the run took until the end of a round. {_SUMS}",
    "time/simulated": f"Seconds that the clients of a simulation would have taken until the end of a round. {_SUMS}",
}


def by(axis: str, tag: str) -> str:
    """Return the tag of a curve by bytes: `accuracy/eval` is `accuracy/by_total_bytes/eval`."""
    group, _, name = tag.partition("/")
    return f"{group}/{axis}/{name}"


def description(tag: str) -> str:
    """Return what a tag means, in a sentence or two. Raises KeyError for a tag that no run has."""
    if tag in _OTHERS:
        return _OTHERS[tag]
    group, *around, name = tag.split("/")
    if group == "exits":
        return (
            f"Share of the validation split that the exit after `{name.replace('_', ' ')}` answers rightly. By round."
        )
    if group == "control":
        return f"Clients that were at the operating point `{name}` in a round."
    if group == "round_MB":
        return f"MB of `{name}` that were sent {around[0]} in a round."
    if group == "stages_MB":
        direction, role = around
        return f"MB of `{role}` {direction} until the end of a round, {_STAGES[name]}. {_SUMS}"
    return f"{_WHAT[f'{group}/{name}']} {_BY[around[0]] if around else 'By round.'}"


def layout(
    *, cut: bool, clients: bool, images: bool = False, timed: bool = False, exits: bool = False
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return the charts of TensorBoard's tab "Custom Scalars", what matters most first; those of a cut, of clients that
    evaluate, of what the images weigh, of simulated time, and of exits, where there are any."""

    def charts(of: dict[str, str]) -> dict[str, Any]:
        return {title: ["Multiline", [f"^{tags}$"]] for title, tags in of.items()}

    accuracy = {"validation, by total bytes": "accuracy/by_total_bytes/eval"}
    if cut:
        accuracy["validation, by cut bytes"] = "accuracy/by_cut_bytes/eval"
    if images:
        accuracy["validation, by what the images weigh (1k: once)"] = "accuracy/by_images/eval"
    if timed:
        accuracy["validation, by simulated seconds"] = "accuracy/by_simulated_time/eval"
    accuracy |= {"validation, by round": "accuracy/eval", "test, at the end": "final/test_accuracy"}
    if exits:
        accuracy["exits and the whole model, validation, by round"] = "(exits/.*|accuracy/eval)"
    found = {"accuracy": charts(accuracy)}
    if clients:
        found["accuracy on what clients hold out"] = charts({
            "all and single clients, by total bytes": "clients/by_total_bytes/(accuracy|worst|median|best)",
            "all and single clients, by round": "clients/(accuracy|worst|median|best)",
        })  # fmt: skip
    sums = {"cut and total" if cut else "total": "sum_MB/(cut|total)"}
    if cut:
        sums["smashed, raw to sent"] = "stages_MB/up/smashed/.*"
        sums["cut_gradient, raw to sent"] = "stages_MB/down/cut_gradient/.*"
    else:
        sums["front_weights, raw to sent"] = "stages_MB/.*/front_weights/.*"
    found["MB so far (set smoothing to 0)"] = charts(sums)
    found["MB of a round"] = charts({"up, by role": "round_MB/up/.*", "down, by role": "round_MB/down/.*"})
    found["loss"] = charts({"training and validation, by round": "loss/(train|eval)"})
    return found
