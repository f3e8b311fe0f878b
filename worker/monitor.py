"""Flower over our queue: `python -m worker.monitor`. Its pages fill when workers run with `DESCENT_TASK_EVENTS=1`.

It only shows. What it offers to do to a worker (stop it, revoke a task) reaches none: ours take no remote control.
"""

import sys
from importlib.util import find_spec

from core.jobs.broker import make_celery
from core.settings import read_settings


def main() -> None:
    """Serve flower's pages until SIGTERM or SIGINT. What stands on the command line are flower's own options."""
    if find_spec("flower") is None:
        sys.exit("descent: the package `flower` is missing: pip install 'descent[flower]'")
    make_celery(read_settings().store_url).start(["flower", *sys.argv[1:]])


if __name__ == "__main__":
    main()
