"""The keeper's process; see server.py."""

import sys

from .server import main

main(sys.argv[1:])
