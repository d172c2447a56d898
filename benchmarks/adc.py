"""What ADC costs a client: its share of a DeiT-Tiny client step (random weights, 224 px, cut after block 3).

A client step is the front's forward pass, the reduction, the backward pass from a given gradient at the cut, and an
Adam step. Steps with and without ADC alternate, so that both see the same machine. The share printed is the time of
ADC's own work (reading the attention, k-means, gathering and merging, and the backward pass of these) over the time of
the step without it; the whole steps' medians are printed beside it.
"""

import argparse
import statistics
import time

import torch

from splitfed.compression.reducers.adc import AdcPlan
from splitfed.compression.reducers.base import View
from splitfed.compression.reducers.samples.merging import kept, kept_tokens, merge, strongest
from splitfed.compression.reducers.settings import AdcConfig
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.build import build, split
from splitfed.model.settings import ModelConfig
from splitfed.seeds import Key


class Clock:
    """Collects seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.last = time.perf_counter()

    def start(self) -> None:
        """Begin the next part now."""
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last part under `name`."""
        now = time.perf_counter()
        self.seconds.setdefault(name, []).append(now - self.last)
        self.last = now

    def median(self, name: str) -> float:
        """Return the median of a part."""
        return statistics.median(self.seconds[name])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    config = ModelConfig(name="deit_tiny_patch16_224", cut=3, image_size=224)
    front, _ = split(build(config, 100, key=Key(0)), config.cut)
    cls_attention = ClsAttention(front)
    adam = torch.optim.Adam(front.parameters(), lr=1e-4, foreach=True)
    images = torch.randn(options.batch, 3, 224, 224)
    reducer = AdcConfig(ratio=options.ratio).build()
    clock = Clock()

    def step(reduced: bool) -> None:
        cls_attention.enabled = reduced
        clock.start()
        activations = front(images)
        if reduced:
            view = View(activations.detach(), front.num_prefix_tokens, cls_attention.read)
            activations = reducer.plan(view, Key(0)).reduce(activations)
        activations.backward(torch.ones_like(activations))
        adam.step()
        adam.zero_grad(set_to_none=True)
        clock.lap("step with adc" if reduced else "step without adc")

    def parts() -> None:
        cls_attention.enabled = True
        with torch.no_grad():
            activations = front(images)
        activations.requires_grad_()
        clock.start()
        attention = cls_attention.read()
        clock.lap("attention")
        merging = merge(attention, kept(reducer.kept_samples, len(attention)), Key(0), reducer.iterations)
        clock.lap("k-means")
        count = kept_tokens(reducer.kept_tokens, attention.shape[1], front.num_prefix_tokens)
        positions = strongest(merging.average(attention), count, front.num_prefix_tokens)
        smashed = AdcPlan(merging=merging, positions=positions).reduce(activations)
        clock.lap("gather+merge")
        gradient = torch.ones_like(smashed)
        clock.start()
        smashed.backward(gradient)
        clock.lap("gather+merge backward")

    for repeat in range(options.repeats + 1):
        if repeat == 1:
            clock.seconds.clear()  # the first pass warmed up
        step(reduced=False)
        step(reduced=True)
        parts()

    whole = clock.median("step without adc")
    names = [name for name in clock.seconds if not name.startswith("step")]
    print(f"threads {options.threads}, batch {options.batch}, ratio {options.ratio}, medians of {options.repeats}")
    for name in clock.seconds:
        print(f"{name:22} {1000 * clock.median(name):9.2f} ms  {100 * clock.median(name) / whole:6.2f} %")
    print(f"adc share: {100 * sum(clock.median(name) for name in names) / whole:.2f} %")


if __name__ == "__main__":
    main()
