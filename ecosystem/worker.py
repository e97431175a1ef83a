"""`python -m ecosystem.worker LIBRARY RESULTS`: check the architectures of a library that RESULTS does not have yet.

Runs in the environment of the library.  A line is written before and after each architecture: one that crashes the
process is known to the next call, which goes on behind it.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

SECONDS = 60
"""The processor time that one architecture may take."""


class TooLongError(BaseException):
    """An architecture takes too long; no code of a model or of the guard catches this."""


def main(library: str, results: Path, shard: tuple[int, int]) -> None:
    """Check the architectures of one library.

    Args:
        library: A module of `ecosystem.libraries`.
        results: JSON lines, appended to.
        shard: The number of this shard, from 1, and how many there are.
    """
    from ecosystem.architectures import CannotRunError, check

    warnings.simplefilter("ignore")
    known = {json.loads(line)["name"] for line in results.read_text().splitlines()} if results.exists() else set()
    number, count = shard
    with results.open("a", buffering=1) as file:
        for index, architecture in enumerate(import_module(f"ecosystem.libraries.{library}").architectures()):
            if index % count != number - 1 or architecture.name in known:
                continue
            print(json.dumps({"name": architecture.name, "deviations": ["the process crashed"]}), file=file)
            start = time.process_time()
            signal.signal(signal.SIGPROF, _too_long)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                row: dict[str, Any] = check(architecture).as_row()
            except CannotRunError as error:
                row = {"name": architecture.name, "skipped": shortened(str(error))}
            except TooLongError as error:
                row = {"name": architecture.name, "skipped": str(error)}
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            row["seconds"] = round(time.process_time() - start, 2)
            print(json.dumps(row), file=file)


def shortened(text: str) -> str:
    """Return the first words of a message, without what differs from process to process."""
    return " ".join(re.sub(r"0x[0-9a-f]+|/\S+/", "", text).split())[:80]


def _too_long(*args: object) -> None:
    raise TooLongError(f"more than {SECONDS} s of processor time")


if __name__ == "__main__":
    shard_number, shard_count = map(int, sys.argv[3].split("/"))
    main(sys.argv[1], Path(sys.argv[2]), (shard_number, shard_count))
