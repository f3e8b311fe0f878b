"""Whether Redis lets a process in, and lets it do its work: asked once, when the process starts.

Who may do what is in `users.acl`. Redis itself is asked, so that rights given in other words count as well.
"""

import asyncio
import json
import logging
from pathlib import Path

from core.errors import StackError, Unavailable
from core.jobs.database import connect, reaching_redis, what_is_wrong
from core.settings import Settings

USERS = (Path(__file__).parent / "users.acl").read_text()
_LIMIT_S = 5
_TRIES = 3
_SEEN_BY_ASKING = {"evalsha", "script|load"}  # and a half EVALSHA given to acl_check_cmd crashes Redis 7.0
_WHERE = "docs/operations.md has the rights of each process, ready to use"
_ASK = """#!lua flags=no-writes
-- ARGV[1]: calls, as JSON lists of words. -> the numbers, from 1, of those that the caller's user may not make
local refused = {}
for number, call in ipairs(cjson.decode(ARGV[1])) do
  if not redis.acl_check_cmd(unpack(call)) then table.insert(refused, number) end
end
return refused
"""

log = logging.getLogger(__name__)


def refuse_without_access(settings: Settings, *users: str) -> None:
    """Raises StackError, saying what is wrong and what to do, when Redis will not do what a process needs of it.

    `users` name the rights in `users.acl`. A Redis that does not answer is no reason: it may come. The embedded one is ours.
    """
    if settings.redis_url is None:
        return
    try:
        asyncio.run(look(settings, *users))
    except Unavailable as error:
        log.warning("Redis does not answer yet", extra={"reason": str(error)})


async def look(settings: Settings, *users: str) -> None:
    """Raises StackError as above, and Unavailable when Redis does not answer."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            lacking = await _asked(settings.store_url, [call for user in users for call in calls_of(user)])
    except TimeoutError:
        raise Unavailable(f"no answer from {settings.store_name} within {_LIMIT_S} s") from None
    except Unavailable as error:
        if (why := what_is_wrong(error)) is None:
            hint = "does it speak TLS there?" if settings.store_url.startswith("rediss:") else "is that its TLS port?"
            raise Unavailable(f"no answer from {settings.store_name} ({error.__cause__}; {hint})") from error
        raise StackError(f"Redis at {settings.store_name}: {why}") from None
    if lacking:
        some = ", ".join(" ".join(dict.fromkeys(call)) for call in lacking[:5])
        what = f"rights that {' and '.join(users)} must have: {some}" + (", ..." if len(lacking) > 5 else "")
        raise StackError(f"Redis at {settings.store_name}: its user lacks {what}. {_WHERE}")


async def _asked(url: str, calls: list[list[str]]) -> list[list[str]]:
    """What is `refused`. A server that wants a certificate may end the connection before we have read that it does, so where
    TLS is spoken one that ends without a reason is tried again."""
    tries_left = _TRIES if url.startswith("rediss:") else 1
    while True:
        tries_left -= 1
        try:
            return await refused(url, calls)
        except Unavailable as error:
            if not tries_left or what_is_wrong(error) is not None:
                raise


def calls_of(user: str) -> list[list[str]]:
    """One call of each kind that a user in `users.acl` may make: every command, and to read and write under every name."""
    rules = next(line for line in USERS.splitlines() if line.startswith(f"user {user} ")).partition(" (")[0].split()[4:]
    names = [rule for rule in rules if rule.lstrip("%R").startswith("~")]
    commands = {rule[1:] for rule in rules if rule.startswith("+") and "@" not in rule} - _SEEN_BY_ASKING
    key = _sample(names[0])
    on_names = [["exists", _sample(name)] for name in names]
    on_names += [["del", _sample(name)] for name in names if not name.startswith("%R~")]
    return [[command, key, key] for command in sorted(commands)] + on_names  # enough words for the one with most keys


def _sample(name: str) -> str:
    return name.partition("~")[2].replace("*", "0")


@reaching_redis
async def refused(url: str, calls: list[list[str]]) -> list[list[str]]:
    """Those of the calls that the URL's user may not make. Raises Unavailable."""
    async with connect(url) as database:
        numbers = await database.script(_ASK)(args=[json.dumps(calls)])
    return [calls[number - 1] for number in numbers]
