#!lua flags=allow-oom
-- Every change of a job's state, each one atomic. Called as: EVALSHA 0 <move> <arguments...>
--
-- The record is the truth: a job is the hash descent:job:<id>, and its status only changes here.
--   status     queued -> running -> succeeded | failed | cancelled, with cancelling, pausing and paused on the way
--   token      counts claims, never goes back, and fences: a write with an older token is refused ('lost')
--   attempt    counts claims that may have done harm; giving a job back unharmed takes one off again
-- Beside it: descent:jobs (all ids, by name = by time), descent:labelled:<label> (those that bear a label: the ones in the
-- record, status:<status>, and for a job with a model, model and model:<data set>), descent:queued (id -> created; by queue in
-- queues.lua, which stands before this file), descent:running (id -> end of its lease), <job>:loss and
-- <job>:epochs (lists of JSON), <job>:transitions, two rankings of each data set's models, and descent:aliases (alias -> id of
-- the job whose model it names; the job's field `aliases` is the other way round).
-- A job or sweep may have an owner. Then it is also in descent:jobs:<owner> or descent:sweeps:<owner>, a job in the owner's rankings,
-- and, until it ends, in descent:live:<owner>.
-- A sweep is the hash descent:sweep:<id> with the list :jobs, and may limit how many of them run at a time: then :active has
-- those in the queue or in a worker's hands, and :held the rest, queued for clients but in no queue. :rung:<n> ranks runs.
-- Three sets are notes to the workers: descent:unfiled (jobs whose job.json is to be written) and descent:trash (deleted
-- jobs whose files are to go); descent:released are jobs whose message is to be sent.
-- descent:deleted:<id> keeps for a month whose a deleted job with a model was.
-- A move that a client asks for gets `by`, JSON: {owner, most_queued (of all), most_live and most_kept (of the owner), request}. The
-- request ({request_id, traceparent}; none for a store of the server's own) is noted in the job's field `request`, so that the
-- worker knows whom it works for, and its id in the transition.
-- For /metrics (measures.lua): descent:counts (status -> jobs), descent:waiting (id -> since when it is in the queue), and
-- descent:totals, which count what ever happened and never go back. All times are the server's own, in milliseconds.
-- allow-oom: submit refuses in good time (is_nearly_full), so that the jobs that were accepted can still be finished.

local moves = {}

local HELD = {running = true, cancelling = true, pausing = true}
local ANSWER = {running = 'go_on', cancelling = 'cancel', pausing = 'pause'}

local function status_of(id) return redis.call('HGET', key(id), 'status') end

local function is_held(id, token)
  local record = redis.call('HMGET', key(id), 'status', 'token')
  return record[2] == token and HELD[record[1]]
end

-- beat id token lease_ms: renew the lease. -> go_on | cancel | pause | lost
function moves.beat(id, token, lease_ms)
  if not is_held(id, token) then return 'lost' end
  redis.call('ZADD', 'descent:running', now + lease_ms, id)
  return ANSWER[status_of(id)]
end

-- append id token steps_done images_per_s [step point]...: add loss points, in order, each step once; a step that an
-- earlier attempt stored already is skipped. -> go_on | cancel | pause | lost
function moves.append(id, token, steps_done, images_per_s, ...)
  if not is_held(id, token) then return 'lost' end
  local record = redis.call('HMGET', key(id), 'last_step', 'least_loss')
  local last, least = tonumber(record[1]), tonumber(record[2] or nil)
  local items = {...}
  for i = 1, #items, 2 do
    if tonumber(items[i]) > last then
      last = tonumber(items[i])
      local count = redis.call('RPUSH', key(id) .. ':loss', items[i + 1])
      local loss = cjson.decode(items[i + 1]).loss
      if type(loss) == 'number' and (not least or loss < least) then
        least = loss
        redis.call('HSET', key(id), 'least_loss', string.format('%.17g', loss), 'least_index', count - 1)
      end
    end
  end
  redis.call('HSET', key(id), 'last_step', last, 'steps_done', steps_done, 'images_per_s', images_per_s,
    'updated_ms', now)
  return ANSWER[status_of(id)]
end

-- These two are nearly all that a running job asks for. The definitions below, which a script runs on every call, would take
-- longer than a beat does.
if moves[ARGV[1]] then return moves[ARGV[1]](unpack(ARGV, 2)) end

local TERMINAL = {succeeded = true, failed = true, cancelled = true}
local DAY_MS = 24 * 3600 * 1000
local REMEMBERED_MS = 30 * DAY_MS -- that a job was deleted
local FULL = 0.8 -- of the server's memory limit
local LONG = 1000 -- messages; to read so many takes a while

local function deleted_key(id) return 'descent:deleted:' .. id end

local function sweep_key(id) return 'descent:sweep:' .. id end

-- one job less in a status, one more in another; either may be nil or false
local function count_as(before, after)
  if before then redis.call('HINCRBY', 'descent:counts', before, -1) end
  if after then redis.call('HINCRBY', 'descent:counts', after, 1) end
end

local function tally(event) redis.call('HINCRBY', 'descent:totals', event, 1) end

-- the names of a set that lists jobs or sweeps: everybody's, and that of the record's owner if it has one
local function everybodys_and_own(set, record)
  local owner = redis.call('HGET', record, 'owner')
  return owner and {set, set .. ':' .. owner} or {set}
end

local function list(set, id, record)
  for _, name in ipairs(everybodys_and_own(set, record)) do redis.call('ZADD', name, 0, id) end
end

local function unlist(set, id, record)
  for _, name in ipairs(everybodys_and_own(set, record)) do redis.call('ZREM', name, id) end
end

local function count_as_live(id, status)
  local owner = redis.call('HGET', key(id), 'owner')
  if owner then redis.call(TERMINAL[status] and 'SREM' or 'SADD', 'descent:live:' .. owner, id) end
end

local function labelled(label) return 'descent:labelled:' .. label end

-- the labels that stay with a job
local function labels_of(id) return cjson.decode(redis.call('HGET', key(id), 'labels') or '[]') end

local request -- that this move is made for; nil for none

local function on_behalf_of(by_json)
  local by = cjson.decode(by_json)
  request = by.request
  return by
end

local function enter(id, status, worker)
  count_as(status_of(id), status)
  redis.call('ZREM', labelled('status:' .. (status_of(id) or '')), id)
  redis.call('ZADD', labelled('status:' .. status), 0, id)
  redis.call('HSET', key(id), 'status', status, 'updated_ms', now)
  local entry = {status = status, at_ms = now}
  if worker then entry.worker = worker end
  if request then
    entry.request_id = request.request_id
    redis.call('HSET', key(id), 'request', cjson.encode(request))
  end
  redis.call('RPUSH', key(id) .. ':transitions', cjson.encode(entry))
  redis.call('SADD', 'descent:unfiled', id)
  count_as_live(id, status)
end

local function unqueue(id)
  if redis.call('ZREM', 'descent:queued', id) == 1 then redis.call('ZREM', at_home_in(home_of(id)), id) end
  redis.call('ZREM', 'descent:waiting', id)
end

-- out of the queue, or out of a worker's hands; the time it ran counts for its limit
local function leave(id)
  unqueue(id)
  if redis.call('ZREM', 'descent:running', id) == 1 then
    redis.call('HINCRBY', key(id), 'ran_ms', now - redis.call('HGET', key(id), 'claimed_ms'))
  end
end

-- the key of the sweep that limits this job, and the limit
local function limited_by(id)
  local sweep = redis.call('HGET', key(id), 'sweep')
  local limit = sweep and tonumber(redis.call('HGET', sweep_key(sweep), 'max_concurrent') or '')
  if limit then return sweep_key(sweep), limit end
end

-- into the queue, or, when its sweep has as many there as it may, held back
local function enqueue(id)
  local sweep, limit = limited_by(id)
  if sweep and redis.call('SISMEMBER', sweep .. ':active', id) == 0 then
    if redis.call('SCARD', sweep .. ':active') >= limit then
      redis.call('RPUSH', sweep .. ':held', id)
      return
    end
    redis.call('SADD', sweep .. ':active', id)
  end
  local created_ms = redis.call('HGET', key(id), 'created_ms')
  redis.call('ZADD', 'descent:queued', created_ms, id)
  redis.call('ZADD', at_home_in(home_of(id)), created_ms, id)
  redis.call('ZADD', 'descent:waiting', now, id)
end

-- put a job's message into a queue. Without a queue: into that of GPUs, while one is alive, for a job that trains anywhere (if it
-- still waits some seconds later, the reconciler rings for it where every worker listens); else where it is at home
local function push(id, message, queue)
  if queue == '' then
    local home, device = home_of(id)
    queue = device == 'auto' and is_served(GPU) and GPU or home
  end
  redis.call('LPUSH', queue, (message:gsub('<the queue>', queue)))
end

-- its place in its sweep is free: the next one's turn
local function release(id)
  local sweep = limited_by(id)
  if not sweep then return end
  redis.call('LREM', sweep .. ':held', 0, id)
  if redis.call('SREM', sweep .. ':active', id) == 0 then return end
  local next = redis.call('LPOP', sweep .. ':held')
  if next then
    enqueue(next)
    redis.call('HSET', key(next), 'rung_ms', 0)
    redis.call('SADD', 'descent:released', next)
  end
end

local function end_with(id, status, error_json)
  leave(id)
  redis.call('HSET', key(id), 'finished_ms', now)
  if error_json then redis.call('HSET', key(id), 'error', error_json) end
  tally('finished:' .. status .. ':' .. (error_json and cjson.decode(error_json).code or ''))
  enter(id, status)
  release(id)
end

local function back_to_queue(id)
  leave(id)
  enqueue(id)
  redis.call('HSET', key(id), 'rung_ms', 0)
  enter(id, 'queued')
end

local function set_aside(id)
  leave(id)
  enter(id, 'paused')
  release(id)
end

local function is_nearly_full()
  local memory = redis.call('INFO', 'memory')
  local limit = tonumber(memory:match('maxmemory:(%d+)'))
  return limit > 0 and tonumber(memory:match('used_memory:(%d+)')) > FULL * limit
end

-- why so many jobs more may not wait, or nothing
local function is_long(by, count)
  return redis.call('ZCARD', labelled('status:queued')) + count > by.most_queued and 'long'
end

-- why an owner may not have so many more that have not ended, or nothing
local function refusal(by, count, owner)
  if is_nearly_full() then return 'full' end
  if is_long(by, count) then return 'long' end
  if owner ~= '' and redis.call('SCARD', 'descent:live:' .. owner) + count > by.most_live then return 'crowded' end
end

-- why so many new jobs are refused, or nothing
local function refusal_of_new(by, count)
  local kept = by.owner ~= '' and redis.call('ZCARD', 'descent:jobs:' .. by.owner) or 0
  return refusal(by, count, by.owner) or (kept + count > by.most_kept and by.owner ~= '' and 'hoarding') or nil
end

-- why a job may not wait again, or nothing. One that is paused has not ended, so it counts as its owner's already
local function refusal_of_old(by, id, status)
  if status == 'paused' then return is_long(by, 1) end
  return refusal(by, 1, redis.call('HGET', key(id), 'owner') or '')
end

local function dataset_of(id) return cjson.decode(redis.call('HGET', key(id), 'spec')).dataset end

-- the labels of a job that has a model
local function model_labels(id) return {'model', 'model:' .. dataset_of(id)} end

-- best and latest of a data set; the default one's have its name left out, as clients leave it out
local function rankings(id)
  local dataset = dataset_of(id)
  local stem = 'descent:models:' .. (dataset == 'mnist' and '' or dataset .. ':')
  return stem .. 'latest', stem .. 'best'
end

local function rank(id, accuracy, at_ms)
  local latest, best = rankings(id)
  for ranking, score in pairs({[latest] = at_ms, [best] = accuracy}) do
    for _, name in ipairs(everybodys_and_own(ranking, key(id))) do redis.call('ZADD', name, score, id) end
  end
  for _, label in ipairs(model_labels(id)) do redis.call('ZADD', labelled(label), 0, id) end
end

-- an owner's aliases are called `owner/alias`, in a hash of their own
local function aliases_with(alias)
  local owner = alias:match('^(.*)/')
  return owner and 'descent:aliases:' .. owner or 'descent:aliases'
end

-- alias -> since when (ms)
local function aliases_of(id) return cjson.decode(redis.call('HGET', key(id), 'aliases') or '{}') end

-- at_ms nil: the alias is taken from the job. Its files are to say so too, so that aliases outlive a lost database
local function note_alias(id, alias, at_ms)
  local aliases = aliases_of(id)
  aliases[alias] = at_ms
  if next(aliases) then
    redis.call('HSET', key(id), 'aliases', cjson.encode(aliases))
  else
    redis.call('HDEL', key(id), 'aliases')
  end
  redis.call('SADD', 'descent:unfiled', id)
end

local function give_alias(alias, id, at_ms)
  local before = redis.call('HGET', aliases_with(alias), alias)
  if before then note_alias(before, alias, nil) end
  redis.call('HSET', aliases_with(alias), alias, id)
  note_alias(id, alias, at_ms)
end

-- what a client's idempotency key named within a day: {known | reused | gone, id}, or nothing. body is a digest of what is asked for
local function named_before(idempotency_key, body)
  if idempotency_key == '' then return end
  local known = redis.call('HMGET', 'descent:idempotency:' .. idempotency_key, 'id', 'body')
  if not known[1] then return end
  if known[2] ~= body then return {'reused', known[1]} end
  local is_there = status_of(known[1]) or redis.call('EXISTS', sweep_key(known[1])) == 1
  return {is_there and 'known' or 'gone', known[1]}
end

local function give_name(idempotency_key, id, body)
  if idempotency_key == '' then return end
  redis.call('HSET', 'descent:idempotency:' .. idempotency_key, 'id', id, 'body', body)
  redis.call('PEXPIRE', 'descent:idempotency:' .. idempotency_key, DAY_MS)
end

local function create(id, owner, sweep, spec, spec_hash, total_steps, optimizer, labels)
  redis.call('HSET', key(id), 'spec', spec, 'spec_hash', spec_hash, 'total_steps', total_steps, 'optimizer', optimizer,
    'labels', labels, 'created_ms', now, 'rung_ms', now, 'attempt', 0, 'token', 0, 'last_step', -1, 'steps_done', 0, 'ran_ms', 0)
  if sweep then redis.call('HSET', key(id), 'sweep', sweep) end
  if owner ~= '' then redis.call('HSET', key(id), 'owner', owner) end
  list('descent:jobs', id, key(id))
  for _, label in ipairs(labels_of(id)) do redis.call('ZADD', labelled(label), 0, id) end
  enqueue(id)
  tally('submitted')
  enter(id, 'queued')
  redis.call('SREM', 'descent:unfiled', id) -- there may be very many, and they have no files yet
end

-- submit id spec spec_hash total_steps optimizer labels key body by [message]: store a new job, once, and put its message
-- into a queue. labels are a JSON list; key and body are '' or digests: of the client's idempotency key, which names one job
-- for a day, and of what was asked for with it. by is JSON: see `refusal`.
-- -> {created | known | reused | gone | full | long | crowded | hoarding, id}, and of a new job what reads.job says
function moves.submit(id, spec, spec_hash, total_steps, optimizer, labels, idempotency_key, body, by_json, message)
  if status_of(id) then return {'created', id} end
  local known = named_before(idempotency_key, body)
  if known then return known end
  local by = on_behalf_of(by_json)
  local refused = refusal_of_new(by, 1)
  if refused then return {refused, ''} end
  give_name(idempotency_key, id, body)
  create(id, by.owner, nil, spec, spec_hash, total_steps, optimizer, labels)
  if message then push(id, message, '') end
  return {'created', id, redis.call('HGETALL', key(id)), false, redis.call('LRANGE', key(id) .. ':transitions', 0, -1),
    place_of(id)}
end

-- sweep id spec max_concurrent rungs reduction_factor key body by [message id spec spec_hash total_steps optimizer labels]...:
-- store a sweep and its jobs, and put their messages (unless '') into queues. rungs is a JSON list; max_concurrent may be
-- ''. -> as submit
function moves.sweep(id, spec, max_concurrent, rungs, reduction_factor, idempotency_key, body, by_json, ...)
  if redis.call('EXISTS', sweep_key(id)) == 1 then return {'created', id} end
  local known = named_before(idempotency_key, body)
  if known then return known end
  local by, jobs = on_behalf_of(by_json), {...}
  local refused = refusal_of_new(by, #jobs / 7)
  if refused then return {refused, ''} end
  give_name(idempotency_key, id, body)
  redis.call('HSET', sweep_key(id), 'spec', spec, 'created_ms', now, 'max_concurrent', max_concurrent, 'rungs', rungs,
    'reduction_factor', reduction_factor)
  if by.owner ~= '' then redis.call('HSET', sweep_key(id), 'owner', by.owner) end
  list('descent:sweeps', id, sweep_key(id))
  redis.call('SADD', 'descent:unfiled', id)
  for i = 1, #jobs, 7 do
    redis.call('RPUSH', sweep_key(id) .. ':jobs', jobs[i + 1])
    create(jobs[i + 1], by.owner, id, unpack(jobs, i + 2, i + 6))
    if jobs[i] ~= '' then push(jobs[i + 1], jobs[i], '') end
  end
  return {'created', id}
end

local function listens_to(queues, wanted)
  for _, queue in ipairs(queues) do
    if queue == wanted then return true end
  end
end

-- claim id worker lease_ms queues: queued -> running for one worker, when its queues (JSON; '' for any) are such that it can
-- train the job. The same worker asking again gets the same answer, so a lost reply does no harm. -> {token, attempt, spec, last step stored, ms it ran before} | {} when there is nothing to do
function moves.claim(id, worker, lease_ms, queues)
  local record = redis.call('HMGET', key(id), 'status', 'worker')
  if record[1] ~= 'running' or record[2] ~= worker then
    if record[1] ~= 'queued' or not redis.call('ZSCORE', 'descent:queued', id) then return {} end
    if queues ~= '' and not listens_to(cjson.decode(queues), home_of(id)) then return {} end
    redis.call('SREM', 'descent:released', id)
    redis.call('HINCRBY', key(id), 'token', 1)
    redis.call('HINCRBY', key(id), 'attempt', 1)
    tally('attempts')
    redis.call('HSET', key(id), 'worker', worker, 'claimed_ms', now)
    redis.call('HSETNX', key(id), 'started_ms', now)
    redis.call('HDEL', key(id), 'partial')
    unqueue(id)
    redis.call('ZADD', 'descent:running', now + lease_ms, id)
    enter(id, 'running', worker)
  end
  return redis.call('HMGET', key(id), 'token', 'attempt', 'spec', 'last_step', 'ran_ms', 'request')
end

-- begin id token backend spec_hash resumed_from: the trainer has begun: on what, and after which step ('' for the first).
-- -> go_on | cancel | pause | lost
function moves.begin(id, token, backend, spec_hash, resumed_from)
  if not is_held(id, token) then return 'lost' end
  redis.call('HSET', key(id), 'backend', backend, 'spec_hash', spec_hash, 'resumed_from', resumed_from, 'updated_ms', now)
  return ANSWER[status_of(id)]
end

-- put a run among those that have come as far, where runs are compared. -> the rung's key and the run's score, or nothing
local function come_to_rung(id, epochs, accuracy)
  local sweep = redis.call('HGET', key(id), 'sweep')
  local rungs = sweep and cjson.decode(redis.call('HGET', sweep_key(sweep), 'rungs') or '[]') or {}
  for _, rung in ipairs(rungs) do
    if rung == epochs then
      local name, score = sweep_key(sweep) .. ':rung:' .. epochs, string.format('%.17g', accuracy)
      redis.call('ZADD', name, score, id)
      return name, score
    end
  end
end

-- Successive halving: a run of a sweep has so many epochs behind it. Where runs are compared it goes on only when it is among
-- the best of those that have come so far, a fraction of them rounded up.
local function compare(id, epochs, accuracy)
  local rung, score = come_to_rung(id, epochs, accuracy)
  if not rung then return end
  local factor = redis.call('HGET', sweep_key(redis.call('HGET', key(id), 'sweep')), 'reduction_factor')
  local runs, place = redis.call('ZCARD', rung), redis.call('ZCOUNT', rung, '(' .. score, '+inf') + 1
  local kept = math.ceil(runs / factor)
  if place > kept and status_of(id) ~= 'cancelling' then
    redis.call('HSET', key(id), 'stopped_early',
      cjson.encode({epochs = epochs, valid_accuracy = accuracy, place = place, runs = runs, kept = kept}))
    enter(id, 'cancelling')
  end
end

-- epoch id token number metrics: add the metrics of epoch `number` (from 0), once, with the time.
-- -> go_on | cancel | pause | lost
function moves.epoch(id, token, number, metrics)
  if not is_held(id, token) then return 'lost' end
  if redis.call('LLEN', key(id) .. ':epochs') == tonumber(number) then
    redis.call('RPUSH', key(id) .. ':epochs', metrics:sub(1, -2) .. ',"at_ms":' .. string.format('%.0f', now) .. '}')
    compare(id, number + 1, cjson.decode(metrics).valid_accuracy)
  end
  return ANSWER[status_of(id)]
end

-- finish id token status result model error accuracy partial: end the job. A cancel that was accepted before wins.
-- result, model, error and partial (the weights of a run that was stopped) are '' or JSON. -> the status entered | lost
function moves.finish(id, token, status, result, model, error_json, accuracy, partial)
  if not is_held(id, token) then return 'lost' end
  if partial ~= '' then redis.call('HSET', key(id), 'partial', partial) end
  if status_of(id) == 'cancelling' then
    end_with(id, 'cancelled')
    return 'cancelled'
  end
  if result ~= '' then redis.call('HSET', key(id), 'result', result) end
  if model ~= '' then
    redis.call('HSET', key(id), 'model', model)
    rank(id, accuracy, now)
  end
  end_with(id, status, error_json ~= '' and error_json or nil)
  return status
end

-- stop id token partial: the trainer was stopped unharmed, because the client asked for it or the worker is leaving: the
-- job is cancelled, paused or queued again, and no attempt is used up. -> the status entered | lost
function moves.stop(id, token, partial)
  if not is_held(id, token) then return 'lost' end
  if partial ~= '' then redis.call('HSET', key(id), 'partial', partial) end
  local status = status_of(id)
  if status == 'cancelling' then
    end_with(id, 'cancelled')
    return 'cancelled'
  end
  redis.call('HINCRBY', key(id), 'attempt', -1)
  if status == 'pausing' then
    set_aside(id)
  else
    tally('retried:given_back')
    back_to_queue(id)
  end
  return status_of(id)
end

-- retry id token max_attempts error: the trainer died (token given), or the lease may have run out (token ''): queue the
-- job again, or fail it (with the last step stored) when it has had its attempts. -> the status entered | lost
function moves.retry(id, token, max_attempts, error_json)
  if token ~= '' then
    if not is_held(id, token) then return 'lost' end
  else
    local lease_end = redis.call('ZSCORE', 'descent:running', id)
    if not lease_end or tonumber(lease_end) > now then return 'lost' end
  end
  local status = status_of(id)
  if status == 'cancelling' then
    end_with(id, 'cancelled')
  elseif tonumber(redis.call('HGET', key(id), 'attempt')) >= tonumber(max_attempts) then
    local error = cjson.decode(error_json)
    local last = tonumber(redis.call('HGET', key(id), 'last_step'))
    if last >= 0 then error.step = last end
    end_with(id, 'failed', cjson.encode(error))
  elseif status == 'pausing' then
    set_aside(id)
  else
    tally(token ~= '' and 'retried:trainer_died' or 'retried:lease_expired')
    back_to_queue(id)
  end
  return status_of(id)
end

-- cancel id by: queued or paused -> cancelled at once, running or pausing -> cancelling; any other state stays.
-- -> the status before | ''
function moves.cancel(id, by_json)
  if by_json then on_behalf_of(by_json) end
  local status = status_of(id)
  if status == 'queued' or status == 'paused' then
    end_with(id, 'cancelled')
  elseif status == 'running' or status == 'pausing' then
    enter(id, 'cancelling')
  end
  return status or ''
end

-- pause id by: queued -> paused at once, running -> pausing; any other state stays. -> the status before | ''
function moves.pause(id, by_json)
  on_behalf_of(by_json)
  local status = status_of(id)
  if status == 'queued' then
    set_aside(id)
  elseif status == 'running' then
    enter(id, 'pausing')
  end
  return status or ''
end

-- a job of a sweep goes on again, so the sweep is not a cancelled one any more
local function go_on_with_sweep(id)
  local sweep = redis.call('HGET', key(id), 'sweep')
  if sweep and redis.call('HDEL', sweep_key(sweep), 'cancelled_ms') == 1 then redis.call('SADD', 'descent:unfiled', sweep) end
end

-- resume id by: a paused job, or one that ended without success, is queued again; one that is being paused goes on; any other
-- state stays. -> the status before | full | long | crowded | ''
function moves.resume(id, by_json)
  local by, status = on_behalf_of(by_json), status_of(id)
  if status == 'pausing' then
    enter(id, 'running')
  elseif status == 'paused' or status == 'failed' or status == 'cancelled' then
    local refused = refusal_of_old(by, id, status)
    if refused then return refused end
    if status ~= 'paused' then
      redis.call('HDEL', key(id), 'error', 'finished_ms', 'extended', 'stopped_early')
      redis.call('HSET', key(id), 'attempt', 0, 'ran_ms', 0)
    end
    go_on_with_sweep(id)
    back_to_queue(id)
  end
  return status or ''
end

-- extend id epochs seen spec spec_hash total_steps by: a job that has ended is queued again with a spec of `epochs` more, made
-- from the one that was seen. Asked again while that goes on, it changes nothing.
-- -> the status before | known | changed (the spec is not the one seen) | full | long | crowded | ''
function moves.extend(id, epochs, seen, spec, spec_hash, total_steps, by_json)
  local record = redis.call('HMGET', key(id), 'status', 'spec', 'extended')
  local status = record[1] or ''
  if status ~= '' and not TERMINAL[status] then return record[3] == epochs and 'known' or status end
  if status == '' then return '' end
  if record[2] ~= seen then return 'changed' end
  local refused = refusal_of_old(on_behalf_of(by_json), id, status)
  if refused then return refused end
  redis.call('HDEL', key(id), 'error', 'finished_ms', 'stopped_early')
  redis.call('HSET', key(id), 'attempt', 0, 'ran_ms', 0, 'spec', spec, 'spec_hash', spec_hash,
    'total_steps', total_steps, 'extended', epochs)
  go_on_with_sweep(id)
  back_to_queue(id)
  return status
end

-- delete id: forget a job that has ended and whose model no alias names; its files are left to whoever empties the trash. If
-- it had a model, descent:deleted:<id> keeps for a month whose it was, so that who asks for the model is told.
-- -> the status before | named | ''
function moves.delete(id)
  local status = status_of(id)
  if not status then return '' end
  if not TERMINAL[status] then return status end
  if redis.call('HEXISTS', key(id), 'aliases') == 1 then return 'named' end
  for _, set in ipairs({'descent:jobs', rankings(id)}) do unlist(set, id, key(id)) end
  for _, labels in ipairs({labels_of(id), model_labels(id), {'status:' .. status}}) do
    for _, label in ipairs(labels) do redis.call('ZREM', labelled(label), id) end
  end
  redis.call('SREM', 'descent:unfiled', id)
  redis.call('SADD', 'descent:trash', id)
  count_as(status, nil)
  if redis.call('HEXISTS', key(id), 'model') == 1 or redis.call('HEXISTS', key(id), 'partial') == 1 then
    redis.call('SET', deleted_key(id), redis.call('HGET', key(id), 'owner') or '', 'PX', REMEMBERED_MS)
  end
  redis.call('DEL', key(id), key(id) .. ':loss', key(id) .. ':epochs', key(id) .. ':transitions')
  return status
end

-- cancel_sweep id by: cancel those of its jobs that have not ended. -> how many | -1 (no such sweep)
function moves.cancel_sweep(id, by_json)
  on_behalf_of(by_json)
  if redis.call('EXISTS', sweep_key(id)) == 0 then return -1 end
  redis.call('DEL', sweep_key(id) .. ':held') -- none of them is to take the place of another
  local count = 0
  for _, job in ipairs(redis.call('LRANGE', sweep_key(id) .. ':jobs', 0, -1)) do
    local status = status_of(job)
    if status and not TERMINAL[status] and status ~= 'cancelling' then
      moves.cancel(job)
      count = count + 1
    end
  end
  if count > 0 then
    redis.call('HSET', sweep_key(id), 'cancelled_ms', now)
    redis.call('SADD', 'descent:unfiled', id)
  end
  return count
end

-- delete_sweep id: forget a sweep whose jobs have all ended, and the jobs.
-- -> how many have not | -1 (no such sweep) | -2 (an alias names the model of one)
function moves.delete_sweep(id)
  if redis.call('EXISTS', sweep_key(id)) == 0 then return -1 end
  local jobs, count = redis.call('LRANGE', sweep_key(id) .. ':jobs', 0, -1), 0
  for _, job in ipairs(jobs) do
    local status = status_of(job)
    if status and not TERMINAL[status] then count = count + 1 end
  end
  if count > 0 then return count end
  for _, job in ipairs(jobs) do
    if redis.call('HEXISTS', key(job), 'aliases') == 1 then return -2 end
  end
  for _, job in ipairs(jobs) do moves.delete(job) end
  for _, rung in ipairs(cjson.decode(redis.call('HGET', sweep_key(id), 'rungs'))) do
    redis.call('DEL', sweep_key(id) .. ':rung:' .. rung)
  end
  unlist('descent:sweeps', id, sweep_key(id))
  redis.call('DEL', sweep_key(id), sweep_key(id) .. ':jobs', sweep_key(id) .. ':active', sweep_key(id) .. ':held')
  redis.call('SREM', 'descent:unfiled', id)
  redis.call('SADD', 'descent:trash', id)
  return 0
end

-- filed_sweep id cancelled_ms: the sweep's file was written when it had that ('' for not cancelled)
function moves.filed_sweep(id, cancelled_ms)
  if redis.call('EXISTS', sweep_key(id)) == 0 then
    redis.call('SADD', 'descent:trash', id)
  elseif (redis.call('HGET', sweep_key(id), 'cancelled_ms') or '') == cancelled_ms then
    redis.call('SREM', 'descent:unfiled', id)
  end
  return 'ok'
end

-- restore_sweep id record jobs: a sweep from its file (JSON: an object and a list), before its jobs. -> restored | exists | deleted
function moves.restore_sweep(id, record_json, jobs_json)
  if redis.call('EXISTS', sweep_key(id)) == 1 then return 'exists' end
  if redis.call('SISMEMBER', 'descent:trash', id) == 1 then return 'deleted' end
  for name, value in pairs(cjson.decode(record_json)) do redis.call('HSET', sweep_key(id), name, value) end
  for _, job in ipairs(cjson.decode(jobs_json)) do redis.call('RPUSH', sweep_key(id) .. ':jobs', job) end
  list('descent:sweeps', id, sweep_key(id))
  return 'restored'
end

-- name alias id most: from now on the alias names the job's model. -> named | not_ready | many (there are `most`) | full | ''
function moves.name(alias, id, most)
  if not status_of(id) then return '' end
  if redis.call('HEXISTS', key(id), 'model') == 0 then return 'not_ready' end
  local before = redis.call('HGET', aliases_with(alias), alias)
  if before == id then return 'named' end
  if not before and redis.call('HLEN', aliases_with(alias)) >= tonumber(most) then return 'many' end
  if not before and is_nearly_full() then return 'full' end
  give_alias(alias, id, now)
  return 'named'
end

-- unname alias: forget it; the job and its model stay. -> 1 | 0
function moves.unname(alias)
  local id = redis.call('HGET', aliases_with(alias), alias)
  if not id then return 0 end
  redis.call('HDEL', aliases_with(alias), alias)
  note_alias(id, alias, nil)
  return 1
end

-- filed id transitions aliases: the job's files were written when it had so many transitions, and these aliases ('' for
-- none). If it has others by now they are to be written again; if it was deleted meanwhile, they are to go
function moves.filed(id, transitions, aliases)
  if not status_of(id) then
    redis.call('SADD', 'descent:trash', id)
  elseif redis.call('LLEN', key(id) .. ':transitions') == tonumber(transitions)
    and (redis.call('HGET', key(id), 'aliases') or '') == aliases then
    redis.call('SREM', 'descent:unfiled', id)
  else
    redis.call('SADD', 'descent:unfiled', id) -- somebody who was quicker had written what this has overwritten
  end
  return 'ok'
end

-- restore id restoring points record transitions epochs: a job from its files (JSON: an object and two lists); so many points
-- were pushed to the list `restoring` before. One that was running is queued, without an attempt used up.
-- -> restored | exists | deleted | torn (there are not so many points)
function moves.restore(id, restoring, points, record_json, transitions_json, epochs_json)
  local refused = status_of(id) and 'exists' or redis.call('SISMEMBER', 'descent:trash', id) == 1 and 'deleted'
    or redis.call('LLEN', restoring) ~= tonumber(points) and 'torn'
  if refused then
    redis.call('DEL', restoring)
    return refused
  end
  redis.call('DEL', deleted_key(id))
  local record = cjson.decode(record_json)
  for name, value in pairs(record) do redis.call('HSET', key(id), name, value) end
  count_as(nil, record.status)
  for _, text in ipairs(cjson.decode(transitions_json)) do redis.call('RPUSH', key(id) .. ':transitions', text) end
  for number, text in ipairs(cjson.decode(epochs_json)) do
    redis.call('RPUSH', key(id) .. ':epochs', text)
    come_to_rung(id, number, cjson.decode(text).valid_accuracy)
  end
  redis.call('PERSIST', restoring)
  if redis.call('EXISTS', restoring) == 1 then redis.call('RENAME', restoring, key(id) .. ':loss') end
  list('descent:jobs', id, key(id))
  for _, label in ipairs(labels_of(id)) do redis.call('ZADD', labelled(label), 0, id) end
  redis.call('ZADD', labelled('status:' .. record.status), 0, id)
  count_as_live(id, record.status)
  if record.model then
    local result = cjson.decode(record.result or '{}')
    rank(id, tonumber(result.test_accuracy) or 0, record.finished_ms or now)
  end
  for alias, at_ms in pairs(aliases_of(id)) do -- of two jobs whose files say it is theirs, who got it last is right
    local other = redis.call('HGET', aliases_with(alias), alias)
    if other and (aliases_of(other)[alias] or 0) >= at_ms then note_alias(id, alias, nil) else give_alias(alias, id, at_ms) end
  end
  if HELD[record.status] then redis.call('HINCRBY', key(id), 'attempt', -1) end
  if record.status == 'cancelling' then
    end_with(id, 'cancelled')
  elseif record.status == 'pausing' then
    set_aside(id)
  elseif record.status == 'running' or record.status == 'queued' then
    back_to_queue(id)
  end
  return 'restored'
end

-- ring id min_age_ms queue message: may the doorbell of this queued job be rung (again)? Marks it rung, and puts its message
-- (unless '') into the queue ('': see `push`). -> 1 | 0
function moves.ring(id, min_age_ms, queue, message)
  if not redis.call('ZSCORE', 'descent:queued', id) then return 0 end
  if tonumber(redis.call('HGET', key(id), 'rung_ms')) + min_age_ms > now then return 0 end
  redis.call('HSET', key(id), 'rung_ms', now)
  if message ~= '' then push(id, message, queue) end
  return 1
end

-- jobs that a version without several queues has queued are at home in none
local function find_homes()
  for _, queue in ipairs(QUEUES) do redis.call('DEL', at_home_in(queue)) end
  local queued = redis.call('ZRANGE', 'descent:queued', 0, -1, 'WITHSCORES')
  for i = 1, #queued, 2 do redis.call('ZADD', at_home_in(home_of(queued[i])), queued[i + 1], queued[i]) end
end

local function rung_of(id) return tonumber(redis.call('HGET', key(id), 'rung_ms')) end

-- the jobs of a queue that have been passed over: rung for no later than the job of its oldest message, and waiting still. A
-- worker is just fetching them, or their messages are lost. false where that cannot be told
local function passed_over(queue)
  local is_ours, message = pcall(cjson.decode, redis.call('LINDEX', queue, -1))
  local front = is_ours and type(message) == 'table' and type(message.headers) == 'table' and tostring(message.headers.id)
  local rank = front and redis.call('ZRANK', at_home_in(queue), front)
  if not rank then return false end
  local passed, rung_ms = {}, rung_of(front)
  for _, id in ipairs(rank > 0 and redis.call('ZRANGE', at_home_in(queue), 0, math.min(rank, LONG) - 1) or {}) do
    if rung_of(id) <= rung_ms then table.insert(passed, id) end
  end
  return passed
end

-- whether a queue that takes long to read is to be read: a job was passed over already when this was asked for the last time
local function is_worth_reading(queue)
  local seen, passed, is_lost = at_home_in(queue) .. ':passed', passed_over(queue), false
  if not passed then return true end
  for _, id in ipairs(passed) do is_lost = is_lost or redis.call('SISMEMBER', seen, id) == 1 end
  redis.call('DEL', seen)
  if #passed > 0 then
    redis.call('SADD', seen, unpack(passed))
    redis.call('EXPIRE', seen, 3600)
  end
  return is_lost
end

-- short: the queues that somebody listens to and that have fewer messages than jobs are at home there, so that some job's
-- message is lost, or lies where nobody listens any more, or is just being fetched: of a long queue only if some job's turn is
-- over, as until then its message is not missed. Messages that nobody needs any more hide that only for as long as they lie
-- there; where a worker is free they do not
function moves.short()
  local at_home, found = 0, {}
  for _, queue in ipairs(QUEUES) do at_home = at_home + redis.call('ZCARD', at_home_in(queue)) end
  if at_home ~= redis.call('ZCARD', 'descent:queued') then find_homes() end
  for _, queue in ipairs(QUEUES) do
    local messages = redis.call('LLEN', queue)
    local is_short = is_served(queue) and messages < redis.call('ZCARD', at_home_in(queue))
    if is_short and (messages < LONG or is_worth_reading(queue)) then table.insert(found, queue) end
  end
  return found
end

-- turn name ms: whether nobody has had this turn for so long, by the caller's measure, since others may take it less often; it is
-- the caller's then -> 1 | 0
function moves.turn(name, ms)
  local had = tonumber(redis.call('GET', 'descent:turn:' .. name) or nil)
  if had and had <= now and had + ms > now then return 0 end
  redis.call('SET', 'descent:turn:' .. name, now, 'PX', ms)
  return 1
end

-- overdue: the ids whose lease has run out
function moves.overdue()
  return redis.call('ZRANGEBYSCORE', 'descent:running', '-inf', now)
end

local function listen(info, until_ms)
  for _, queue in ipairs(cjson.decode(info).queues or {}) do
    redis.call('ZADD', 'descent:workers:listening', 'GT', until_ms, queue)
  end
end

-- announce worker alive_ms info: a worker is alive for so long; forget the others that are not. info is JSON: among other things
-- the `queues` that it listens to
function moves.announce(worker, alive_ms, info)
  redis.call('HSET', 'descent:workers:info', worker, info)
  redis.call('ZADD', 'descent:workers', now + alive_ms, worker)
  listen(info, now + alive_ms)
  local gone = redis.call('ZRANGEBYSCORE', 'descent:workers', '-inf', now)
  if #gone == 0 then return 'ok' end
  redis.call('ZREM', 'descent:workers', unpack(gone))
  redis.call('HDEL', 'descent:workers:info', unpack(gone))
  redis.call('DEL', 'descent:workers:listening')
  local alive = redis.call('ZRANGE', 'descent:workers', 0, -1, 'WITHSCORES')
  for i = 1, #alive, 2 do listen(redis.call('HGET', 'descent:workers:info', alive[i]), alive[i + 1]) end
  return 'ok'
end

-- workers host: how many are alive on a host, or on all of them when it is ''
function moves.workers(host)
  local count = 0
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', 'descent:workers', now, '+inf')) do
    if host == '' or worker:sub(1, #host + 1) == host .. ':' then
      count = count + 1
    end
  end
  return count
end

return moves[ARGV[1]](unpack(ARGV, 2))
