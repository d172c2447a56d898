"""Pictures of explanations in a run's `tensorboard/` folder, for TensorBoard's tab of images."""

import os
import struct
import time
from pathlib import Path

from splitfed.errors import RunError

TAG = "explain/tokens"


def show_in_tensorboard(run: Path, round: int, png: bytes) -> Path:
    """Write a PNG as the image of a round, in place of an earlier one, and return the file: one for each round, in
    `<run>/tensorboard/explain/`.

    The folder is its own, because a resumed run writes the files beside it anew and tells TensorBoard to drop what it
    read before, and because TensorBoard follows only the last of several files in one folder. Raises RunError where it
    cannot be written.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    width, height = struct.unpack(">II", png[16:24])  # where every PNG has them
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    events = [
        Event(wall_time=time.time(), file_version="brain.Event:2"),
        Event(wall_time=time.time(), step=round, summary=Summary(value=[Summary.Value(tag=TAG, image=image)])),
    ]
    # Read in the order of their names, which is that of the rounds: TensorBoard drops what goes back.
    path = run / "tensorboard" / "explain" / f"events.out.tfevents.{round:010d}"
    scratch = path.with_name(f".new-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(scratch, "wb") as file:
            for event in events:
                RecordWriter(file).write(event.SerializeToString())
        scratch.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); leave it out with --no-tensorboard") from error
    return path
