"""The SuperNode's process: Flower's own, less patient.

Flower sleeps 3 s when there is no work, which a mode that messages its clients one after another pays for each of them,
and up to 20 s before it tries again to reach a server that was away.

And it would vouch for a client that is there no more: it tells the server that it is alive only as long as the process
that trains, its parent, tells it so.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from splitfed.clients.deployment.pulse import Listening
from splitfed.engines.deployment.processes import follow_parent

# A question costs the SuperLink 8 ms: 64 idle clients that ask once a second take half a core of it.
_IDLE_SECONDS, _REPLY_SECONDS, _RETRY_SECONDS = 1.0, 0.2, 3
# Of this, less 5 s for the call, Flower takes seven to nine tenths: a sign of life every 4 s.
_BEAT_SECONDS = 10


def main() -> None:
    """Serve until told to end; the arguments are those of `flower-supernode`."""
    follow_parent()
    from flwr.supercore import heartbeat
    from flwr.supercore.retry import http_retry
    from flwr.supernode import fleet_http_connection as fleet
    from flwr.supernode import start_client_internal as flower
    from flwr.supernode.cli import flower_supernode

    def sleep(seconds: float) -> None:  # 3 s between questions to the SuperLink, 0.5 s until a reply is there
        time.sleep(_IDLE_SECONDS if seconds > 1 else _REPLY_SECONDS)

    parent = Listening(Path(os.environ["FLWR_HOME"]))

    def beats(beat: Callable[[], bool]) -> heartbeat.HeartbeatSender:
        return heartbeat.HeartbeatSender(lambda: beat() if parent.alive() else True)

    heartbeat.HEARTBEAT_DEFAULT_INTERVAL = _BEAT_SECONDS
    fleet.HeartbeatSender = beats  # type: ignore[assignment,misc]
    flower.time = SimpleNamespace(sleep=sleep)  # type: ignore[assignment]
    http_retry.MAX_RETRY_DELAY = _RETRY_SECONDS
    flower_supernode()


if __name__ == "__main__":
    main()
