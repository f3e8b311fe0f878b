"""What the routes share: built once when the API starts."""

from dataclasses import dataclass
from typing import cast

from celery import Celery
from fastapi import Request

from core.jobs.store import JobStore
from core.settings import Settings


@dataclass(frozen=True, kw_only=True)
class State:
    settings: Settings
    store: JobStore
    celery: Celery


def state_of(request: Request) -> State:
    return cast(State, request.app.state.shared)
