"""The command that prepares the reducer `ae`: it fits an autoencoder to public images."""

from pathlib import Path
from typing import Annotated

import typer

from splitfed.cli.options import Overrides, PresetName, ScenarioName


def align(
    scenario: ScenarioName,
    public: Annotated[
        str,
        typer.Option(help="Public images: a name on the Hugging Face Hub, a folder or file here, or digits."),
    ],
    out: Annotated[Path, typer.Option(help="The file to write, e.g. ae.safetensors.")],
    split: Annotated[str, typer.Option(help="Which split of them, or a slice such as 'train[:10%]'.")] = "train",
    image_column: Annotated[str, typer.Option(help="The column that holds the images; labels are not used.")] = "image",
    limit: Annotated[int | None, typer.Option(min=2, help="Use so many of them at most, drawn from the seed.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="How many mini-batches to train for; ten passes if not set.")
    ] = None,
    preset: PresetName = None,
    set_: Overrides = None,
    device: Annotated[str | None, typer.Option(help="Train there: auto, cpu, cuda, cuda:1, mps.")] = None,
) -> None:
    """Fit the autoencoder of the reducer ae to a scenario's front, on public images, and write it to a file.

    The scenario's reducer is ae, whose `weights` then names the file; its front is as the scenario's model begins, and
    is not trained. A tenth of the images is held out; the relative reconstruction error on it is printed: squared
    errors over squared activations of all tokens that are encoded, 0 being exact. Batch size, precision and learning
    rate (the reducer's `lr`) are the scenario's.
    """
    import splitfed
    from splitfed.split.autoencoder import Public
    from splitfed.split.autoencoder import align as fit

    changes = [*(set_ or []), *([f"training.server.device={device}"] if device else [])]
    loaded = splitfed.Scenario.load(scenario, changes, preset=preset)

    def say(step: int, steps: int) -> None:
        if step % max(1, steps // 10) == 0 or step == steps:
            print(f"step {step} of {steps}", flush=True)

    found = fit(loaded, Public(public, split, image_column, limit), out, steps=steps, on_step=say)
    print(f"{found.images} images, {found.held_out} held out, {found.steps} steps")
    print(f"relative reconstruction error {found.after:.4f}, before training {found.before:.4f}")
    print(f"written: {out}; name it in the scenario: compression.reducer.weights={out}")
