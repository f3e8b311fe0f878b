-- Every change of a job's state, each one atomic. Called as: EVALSHA 0 <move> <arguments...>
--
-- The record is the truth: a job is the hash descent:job:<id>, and its status only changes here.
--   status     queued -> running -> succeeded | failed | cancelled, with cancelling on the way
--   token      counts claims, never goes back, and fences: a write with an older token is refused ('lost')
--   attempt    counts claims that may have done harm; giving a job back unharmed takes one off again
-- Beside it: descent:jobs (all ids, by name = by time), descent:queued (id -> created), descent:running (id -> end of
-- its lease), <job>:loss and <job>:epochs (lists of JSON), <job>:transitions, and two rankings for /predict.
-- All times are the server's own, in milliseconds.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local moves = {}

local function key(id) return 'descent:job:' .. id end

local function status_of(id) return redis.call('HGET', key(id), 'status') end

local function enter(id, status, worker)
  redis.call('HSET', key(id), 'status', status, 'updated_ms', now)
  local entry = {status = status, at_ms = now}
  if worker then entry.worker = worker end
  redis.call('RPUSH', key(id) .. ':transitions', cjson.encode(entry))
end

local function is_held(id, token)
  local record = redis.call('HMGET', key(id), 'status', 'token')
  return record[2] == token and (record[1] == 'running' or record[1] == 'cancelling')
end

local function end_with(id, status, error_json)
  redis.call('ZREM', 'descent:running', id)
  redis.call('ZREM', 'descent:queued', id)
  redis.call('HSET', key(id), 'finished_ms', now)
  if error_json then redis.call('HSET', key(id), 'error', error_json) end
  enter(id, status)
end

local function back_to_queue(id)
  redis.call('ZREM', 'descent:running', id)
  redis.call('ZADD', 'descent:queued', redis.call('HGET', key(id), 'created_ms'), id)
  redis.call('HSET', key(id), 'rung_ms', 0)
  enter(id, 'queued')
end

-- submit id spec spec_hash total_steps optimizer: store a new job, once. -> created | exists
function moves.submit(id, spec, spec_hash, total_steps, optimizer)
  if status_of(id) then return 'exists' end
  redis.call('HSET', key(id), 'spec', spec, 'spec_hash', spec_hash, 'total_steps', total_steps, 'optimizer', optimizer,
    'created_ms', now, 'rung_ms', now, 'attempt', 0, 'token', 0, 'last_step', -1, 'steps_done', 0)
  redis.call('ZADD', 'descent:jobs', 0, id)
  redis.call('ZADD', 'descent:queued', now, id)
  enter(id, 'queued')
  return 'created'
end

-- claim id worker lease_ms: queued -> running for one worker. The same worker asking again gets the same answer, so a
-- lost reply does no harm. -> {token, attempt, spec} | {} when there is nothing to do
function moves.claim(id, worker, lease_ms)
  local record = redis.call('HMGET', key(id), 'status', 'worker', 'token', 'attempt', 'spec')
  if record[1] == 'running' and record[2] == worker then return {record[3], record[4], record[5]} end
  if record[1] ~= 'queued' then return {} end
  local token = redis.call('HINCRBY', key(id), 'token', 1)
  local attempt = redis.call('HINCRBY', key(id), 'attempt', 1)
  redis.call('HSET', key(id), 'worker', worker)
  redis.call('HSETNX', key(id), 'started_ms', now)
  redis.call('ZREM', 'descent:queued', id)
  redis.call('ZADD', 'descent:running', now + lease_ms, id)
  enter(id, 'running', worker)
  return {tostring(token), tostring(attempt), record[5]}
end

-- beat id token lease_ms: renew the lease. -> go_on | cancel | lost
function moves.beat(id, token, lease_ms)
  if not is_held(id, token) then return 'lost' end
  redis.call('ZADD', 'descent:running', now + lease_ms, id)
  return status_of(id) == 'cancelling' and 'cancel' or 'go_on'
end

-- append id token steps_done images_per_s backend spec_hash [step point]...: add loss points, in order, each step once; a
-- step that an earlier attempt stored already is skipped. backend and the hash that names it are '' or as they are from now
-- on. -> go_on | cancel | lost
function moves.append(id, token, steps_done, images_per_s, backend, spec_hash, ...)
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
  if backend ~= '' then redis.call('HSET', key(id), 'backend', backend, 'spec_hash', spec_hash) end
  return status_of(id) == 'cancelling' and 'cancel' or 'go_on'
end

-- epoch id token number metrics: add the metrics of epoch `number` (from 0), once. -> go_on | lost
function moves.epoch(id, token, number, metrics)
  if not is_held(id, token) then return 'lost' end
  if redis.call('LLEN', key(id) .. ':epochs') == tonumber(number) then
    redis.call('RPUSH', key(id) .. ':epochs', metrics)
  end
  return 'go_on'
end

-- finish id token status result model error accuracy: end the job. A cancel that was accepted before wins.
-- result, model and error are '' or JSON. -> the status entered | lost
function moves.finish(id, token, status, result, model, error_json, accuracy)
  if not is_held(id, token) then return 'lost' end
  if status_of(id) == 'cancelling' then
    end_with(id, 'cancelled')
    return 'cancelled'
  end
  if result ~= '' then redis.call('HSET', key(id), 'result', result) end
  if model ~= '' then
    redis.call('HSET', key(id), 'model', model)
    redis.call('ZADD', 'descent:models:latest', now, id)
    redis.call('ZADD', 'descent:models:best', accuracy, id)
  end
  end_with(id, status, error_json ~= '' and error_json or nil)
  return status
end

-- release id token: give a running job back unharmed (the worker is stopping); no attempt is used up.
function moves.release(id, token)
  if not is_held(id, token) then return 'lost' end
  if status_of(id) == 'cancelling' then
    end_with(id, 'cancelled')
  else
    redis.call('HINCRBY', key(id), 'attempt', -1)
    back_to_queue(id)
  end
  return status_of(id)
end

-- retry id token max_attempts error: the trainer died (token given), or the lease may have run out (token ''): queue the
-- job again, or fail it when it has had its attempts. -> the status entered | lost
function moves.retry(id, token, max_attempts, error_json)
  if token ~= '' then
    if not is_held(id, token) then return 'lost' end
  else
    local lease_end = redis.call('ZSCORE', 'descent:running', id)
    if not lease_end or tonumber(lease_end) > now then return 'lost' end
  end
  if status_of(id) == 'cancelling' then
    end_with(id, 'cancelled')
  elseif tonumber(redis.call('HGET', key(id), 'attempt')) >= tonumber(max_attempts) then
    end_with(id, 'failed', error_json)
  else
    back_to_queue(id)
  end
  return status_of(id)
end

-- cancel id: queued -> cancelled at once, running -> cancelling; any other state stays. -> the status before | ''
function moves.cancel(id)
  local status = status_of(id)
  if status == 'queued' then
    end_with(id, 'cancelled')
  elseif status == 'running' then
    enter(id, 'cancelling')
  end
  return status or ''
end

-- ring id min_age_ms: may the doorbell of this queued job be rung (again)? Marks it rung. -> 1 | 0
function moves.ring(id, min_age_ms)
  if status_of(id) ~= 'queued' then return 0 end
  if tonumber(redis.call('HGET', key(id), 'rung_ms')) + min_age_ms > now then return 0 end
  redis.call('HSET', key(id), 'rung_ms', now)
  return 1
end

-- overdue: the ids whose lease has run out
function moves.overdue()
  return redis.call('ZRANGEBYSCORE', 'descent:running', '-inf', now)
end

-- announce worker alive_ms info: a worker is alive for so long; forget the others that are not
function moves.announce(worker, alive_ms, info)
  redis.call('HSET', 'descent:workers:info', worker, info)
  redis.call('ZADD', 'descent:workers', now + alive_ms, worker)
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', 'descent:workers', '-inf', now)) do
    redis.call('ZREM', 'descent:workers', dead)
    redis.call('HDEL', 'descent:workers:info', dead)
  end
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
