"""The keeper's process; see server.py."""

import sys

from harness.keeper.server import main

main(sys.argv[1:])
