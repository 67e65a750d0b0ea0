"""`python -m unixkd`, the same as `unixkd`."""

import sys

from unixkd.cli.main import main
from unixkd.training.distributed.launch import end


def run() -> None:
    """Run the command that the command line names, and end the process with its exit code."""
    end(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
