"""The queue. A message is only a doorbell: it carries a job's id, and the record says whether there is work.

Each setting below answers a measured trap of Celery over Redis; `docs/architecture.md` names them.
"""

import base64
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

from core.errors import Unavailable

TASK = "descent.train"
QUEUE = "descent.train"
_ID, _BODY, _TAG = "<the id>", "<the body>", "<the tag>"  # in a message that is to be filled in
_LIMITS = {"socket_timeout": 3, "socket_connect_timeout": 2}

log = logging.getLogger(__name__)


def make_celery(store_url: str) -> Celery:
    """The Celery application over the store's Redis. Connects to nothing yet."""
    app = Celery("descent", broker=broker_url(store_url), set_as_current=False)
    app.conf.update(
        result_backend=None,  # the store is the only truth
        task_ignore_result=True,
        task_acks_late=False,  # a lease, not the broker, says whether a job is alive
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=QUEUE,
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # never park a job behind a busy worker
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,  # cancelling goes through the record, which outlives a restart
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_LIMITS,
    )
    return app


def broker_url(store_url: str) -> str:
    """The same server as kombu spells it: a unix socket is `redis+socket://`, and the only options it takes are TLS'."""
    url = urlsplit(store_url)
    options = dict(parse_qsl(url.query))
    if url.scheme == "unix":
        return f"redis+socket://{url.netloc}{url.path}?virtual_host={options.get('db', '0')}"
    tls = urlencode({name: value for name, value in options.items() if name.startswith("ssl_")})
    return f"{url.scheme}://{url.netloc}/{options.get('db') or url.path.strip('/') or '0'}" + (f"?{tls}" if tls else "")


def doorbells(app: Celery) -> Callable[[str], tuple[str, str]]:
    """What enqueues a job's message: the queue it lies in, and its text, for who pushes it together with something else.

    Celery makes one message for a transport that only keeps it; each job's id is put in there. That takes 10 us where
    Celery takes 900, and stays what this version of Celery sends.
    """
    with Connection("memory://") as nowhere:
        app.send_task(TASK, args=[_ID], task_id=_ID, connection=nowhere)
        message = nowhere.default_channel._get(QUEUE)  # as it lies there; a public way would unpack it
    body = base64.b64decode(message["body"]).decode()
    message["body"], message["properties"]["delivery_tag"] = _BODY, _TAG
    text = json.dumps(message)

    def doorbell(job_id: str) -> tuple[str, str]:
        own_body = base64.b64encode(body.replace(_ID, job_id).encode()).decode()
        return QUEUE, text.replace(_ID, job_id).replace(_TAG, str(uuid4())).replace(_BODY, own_body)

    return doorbell


def enqueue(app: Celery, job_id: str) -> None:
    """Ring the doorbell for a job, in at most some seconds. Raises Unavailable."""
    try:
        app.send_task(TASK, args=[job_id], task_id=job_id)
    except (OperationalError, OSError) as error:
        raise Unavailable(f"queue: {type(error).__name__}") from error


def count_waiting(app: Celery) -> int:
    """How many messages lie in the queue now. Raises Unavailable."""
    with _queue(app) as redis:
        return int(redis.llen(QUEUE))


def waiting_ids(app: Celery) -> set[str]:
    """Ids of the jobs whose message lies in the queue now. Reads all of it. Raises Unavailable."""
    with _queue(app) as redis:
        messages: list[bytes] = redis.lrange(QUEUE, 0, -1)
    return {job_id for job_id in map(_task_id, messages) if job_id}


@contextmanager
def _queue(app: Celery) -> Iterator[Any]:
    """Kombu's own Redis connection. Raises Unavailable."""
    with app.connection_for_read(connect_timeout=2) as connection:
        lost: tuple[type[Exception], ...] = (*connection.connection_errors, *connection.channel_errors)
        try:
            yield connection.default_channel.client
        except (OperationalError, OSError, *lost) as error:
            raise Unavailable(f"queue: {type(error).__name__}") from error


def _task_id(message: bytes) -> str | None:
    """None for what is no message of ours: Celery will throw it away."""
    try:
        headers: dict[str, Any] = json.loads(message)["headers"]
        return str(headers["id"])
    except (ValueError, KeyError, TypeError):
        return None
