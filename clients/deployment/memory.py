"""Whether this machine's memory, or what its profile says of it, holds what a client needs to train."""

from collections.abc import Iterator
from pathlib import Path

import torch

from splitfed.clients.settings import Settings
from splitfed.clients.worker import Worker
from splitfed.errors import RunError
from splitfed.split.computing.room import Need, ways

_CGROUP = Path("/sys/fs/cgroup")
_HERE = "training.client.chunk"  # what this machine may say itself


def check_memory(worker: Worker, settings: Settings, examples: int) -> None:
    """Raise RunError where a client with so many images has not the memory to train, with what would fit. What a system
    does not tell is not checked."""
    scenario, client = worker.scenario, worker.scenario.training.client
    batch = max(1, min(scenario.training.batch_size, examples))
    need = Need.of(scenario, worker.parts, worker.geometry)
    copies = _copies(worker, examples)
    total = need.total(batch, client.chunk) + copies
    profile = scenario.federation.profiles.get(settings.profile or "")
    rooms = []
    if profile is not None and profile.device.memory is not None:
        rooms.append((profile.device.memory, 0, f"by profile {settings.profile}"))
    if (room := free(worker.device)) is not None:
        weights = sum(p.nbytes for p in worker.part.parameters())  # which are there already
        rooms.append((room + weights, weights, "free here"))
    for memory, there, whose in rooms:
        if total <= memory:
            continue
        fitting = ways(scenario, len(worker.holding.classes), need, batch, memory, copies, settings.profile or "")
        found = [f"--chunk {value} here" if key == _HERE else f"the server's {key} {value}" for key, value in fitting]
        way = f"{' or '.join(found)} fits" if found else "it would take a smaller model"
        raise RunError(
            f"its memory, {_size(memory - there)} {whose}, is less than the {_size(total - there)} that it needs to "
            f"train: {way}"
        )


def free(device: torch.device) -> int | None:
    """Return how many bytes a process may still take on a device, None where nothing tells: what the GPU has left, or
    the least of what the machine, its container and the limits of this process leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_left(), default=None) if device.type == "cpu" else None


def _left() -> Iterator[int]:
    if (machine := _table(Path("/proc/meminfo"))) and "MemAvailable" in machine:
        yield 1024 * (machine["MemAvailable"] + machine.get("SwapFree", 0))
    most, now = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if most is not None and now is not None:  # files that are cached give way
        yield most - now + _table(_CGROUP / "memory.stat").get("inactive_file", 0)
    own = _table(Path("/proc/self/status"))
    if not own:
        return
    import resource  # which Windows has not

    for limit, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield max(0, soft - 1024 * own[taken])


def _table(path: Path) -> dict[str, int]:
    """Read lines that begin with a name and a number; of a file that is not there, none."""
    try:
        rows = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _copies(worker: Worker, examples: int) -> int:
    kept, variants = worker.cut.kept, worker.scenario.data.variants or 1
    return kept.each * min(kept.most, examples * variants) if kept else 0


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
