"""The tests in `inside` run in a machine of their own (machine.py), which test_inside.py boots: they are not collected outside."""

import os

from machine import INSIDE

collect_ignore = [] if os.environ.get(INSIDE) else ["inside"]
