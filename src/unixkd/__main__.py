"""`python -m unixkd`, the same as `unixkd`."""

import sys

from unixkd.cli import main

if __name__ == "__main__":
    sys.exit(main())
