"""The names of models: aliases, which clients give, and those that the server keeps.

`best` is the model with the highest test accuracy, `latest` the one that was finished last: of the default data set, so that
whoever predicts digits gets digits. Those of another data set are called `best:fashion-mnist`, `latest:fashion-mnist`.
"""

import json
import re
from collections.abc import Callable

from core.catalogue import DATASETS, DEFAULT_DATASET
from core.jobs.artifacts import JOB_ID

ALIAS = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")  # no underscore: it cannot look like a job's id
KEPT = tuple(
    word if dataset == DEFAULT_DATASET else f"{word}:{dataset}" for dataset in DATASETS for word in ("best", "latest")
)


STORED = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9._@-]{{0,63}}/)?{ALIAS.pattern}")  # as a record has it


def stored(alias: str, owner: str) -> str:
    """An alias as the database knows it: each owner has his own."""
    return f"{owner}/{alias}" if owner else alias


def own_aliases(text: str | None, owner: str) -> list[str]:
    """Of the aliases in a job's record, those of an owner."""
    given = (alias.rpartition("/") for alias in json.loads(text or "{}"))
    return sorted(alias for whose, _, alias in given if whose == owner)


def aliases_key(owner: str) -> str:
    """The Redis key of an owner's aliases: a hash, alias as it is stored -> job id. `moves.lua` has it too."""
    return f"descent:aliases:{owner}" if owner else "descent:aliases"


def ranking_key(kept: str) -> str:
    """The Redis key of everybody's ranking whose highest member a kept name names. `moves.lua` has it too."""
    word, _, dataset = kept.partition(":")
    return f"descent:models:{dataset}:{word}" if dataset else f"descent:models:{word}"


def found_by(name: str, *, owner: str, own: Callable[[str], str]) -> tuple[str, str, str]:
    """How the read `named` finds the job that a name names for an owner. An id names itself, there being one or not.

    `own` makes the key of the caller's ranking from that of everybody's.
    """
    if JOB_ID.fullmatch(name):
        return "id", "", name
    if name in KEPT:
        return "ranking", own(ranking_key(name)), ""
    return "alias", aliases_key(owner), stored(name, owner)
