"""The queues. A message is only a doorbell: it carries a job's id, and the record says whether there is work.

Messages are pushed by the store's moves, which know who is alive; here is what they look like, and who listens where.

Each setting below answers a measured trap of Celery over Redis; `docs/architecture.md` names them.
"""

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from celery import Celery
from kombu import Connection

TASK = "descent.train"
CPU_QUEUE, GPU_QUEUE, FORMER_QUEUE = "descent.train.cpu", "descent.train.gpu", "descent.train"
_ID, _BODY, _TAG, _QUEUE = "<the id>", "<the body>", "<the tag>", "<the queue>"  # in a message that is to be filled in
_LIMITS = {"socket_timeout": 3, "socket_connect_timeout": 2}
_IN_ORDER = {"queue_order_strategy": "priority"}  # of its queues a worker empties the first first; else they take turns


def make_celery(store_url: str) -> Celery:
    """The Celery application over the store's Redis. Connects to nothing yet."""
    app = Celery("descent", broker=broker_url(store_url), set_as_current=False)
    app.conf.update(
        result_backend=None,  # the store is the only truth
        task_ignore_result=True,
        task_acks_late=False,  # a lease, not the broker, says whether a job is alive
        task_serializer="json",
        accept_content=["json"],
        task_default_queue=CPU_QUEUE,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # never park a job behind a busy worker
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,  # cancelling goes through the record, which outlives a restart
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_LIMITS | _IN_ORDER,
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


def queues_of(gpu: int | None) -> list[str]:
    """What a worker listens to that has the GPU of this number, or none; where there are messages in several, the first counts.

    Every worker serves the queue of the CPU and the one that former versions had.
    """
    return [*([f"{GPU_QUEUE}.{gpu}", GPU_QUEUE] if gpu is not None else []), CPU_QUEUE, FORMER_QUEUE]


def doorbells(app: Celery) -> Callable[[str], str]:
    """What makes a job's message, for any queue: the move that pushes it (`push` in moves.lua) says which.

    Celery makes one message for a transport that only keeps it; each job's id is put in there. That takes 10 us where
    Celery takes 900, and stays what this version of Celery sends.
    """
    with Connection("memory://") as nowhere:
        app.send_task(TASK, args=[_ID], task_id=_ID, queue=_QUEUE, connection=nowhere)
        message = nowhere.default_channel._get(_QUEUE)  # as it lies there; a public way would unpack it
    body = base64.b64decode(message["body"]).decode()
    message["body"], message["properties"]["delivery_tag"] = _BODY, _TAG
    text = json.dumps(message)

    def doorbell(job_id: str) -> str:
        own_body = base64.b64encode(body.replace(_ID, job_id).encode()).decode()
        return text.replace(_ID, job_id).replace(_TAG, str(uuid4())).replace(_BODY, own_body)

    return doorbell


def job_id_of(message: str) -> str | None:
    """None for what is no message of ours: Celery will throw it away."""
    try:
        headers: dict[str, Any] = json.loads(message)["headers"]
        return str(headers["id"])
    except (ValueError, KeyError, TypeError):
        return None
