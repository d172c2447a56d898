"""A point of a sweep, in a process of its own: goes on with the run in a folder, from wherever it is.

Asked to stop, it drops the open round and ends; it also does so when the sweep is gone.
"""

import signal
import sys
from pathlib import Path

from splitfed.engines.deployment.processes import follow_parent
from splitfed.errors import SplitfedError, telling_missing


def main(folder: Path) -> int:
    """Run to the end and return the code to exit with: 2 for a mistake of the user's, 130 when interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    follow_parent()
    try:
        with telling_missing():
            from splitfed.simulation import simulate

            simulate(resume=folder)
    except SplitfedError as error:
        # In one line and the last one: libraries may have said something before.
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
