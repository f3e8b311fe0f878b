"""The worker: a Celery application with one task. `descent worker` runs it; it trains one job at a time."""

import os
import threading
from typing import Any

from celery import Celery, signals

from core.errors import StackError
from core.jobs import broker
from core.settings import Settings, configure_logging, read_settings
from worker.reconcile import keep_reconciling
from worker.run import record_failure, run_job


def make_app(settings: Settings, stopping: threading.Event) -> Celery:
    """The application with its task. `stopping` is set when the worker is told to leave."""
    app = broker.make_celery(settings.store_url)

    @app.task(name=broker.TASK)
    def train(job_id: str) -> None:
        try:
            run_job(job_id, settings, stopping)
        except Exception as error:  # the one place: whatever it is, the worker serves the next job
            record_failure(job_id, error)

    return app


def main() -> None:
    """Run a worker in the foreground until SIGTERM or SIGINT; it then gives its job back and leaves."""
    settings = read_settings()
    configure_logging(settings.log_level)
    stopping = threading.Event()
    app = make_app(settings, stopping)
    reconciler = threading.Thread(target=keep_reconciling, args=(settings, app, stopping), daemon=True)

    @signals.worker_ready.connect(weak=False)
    def begin(**_: Any) -> None:
        reconciler.start()

    @signals.worker_shutting_down.connect(weak=False)
    def leave(**_: Any) -> None:
        stopping.set()

    worker = app.Worker(
        pool="threads",  # the work is done in processes of the tasks' own
        concurrency=1,
        hostname=f"descent-{os.getpid()}@%h",
        loglevel=settings.log_level.upper(),
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    worker.start()
    stopping.set()
    if reconciler.is_alive():
        reconciler.join(timeout=5)
    if worker.exitcode:
        raise StackError(f"the worker ended with {worker.exitcode}")


if __name__ == "__main__":
    main()
