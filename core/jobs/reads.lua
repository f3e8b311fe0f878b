#!lua flags=no-writes
-- Reads that take more than one command, each of one moment and in one round trip. Called as: EVALSHA 0 <read> <arguments...>
-- The keys are those of moves.lua, and queues.lua stands before this file as well.

local reads = {}

-- job id: {record, last loss point, transitions, place in its queue, whether that is served} | {} when there is no such job
function reads.job(id)
  local record = redis.call('HGETALL', key(id))
  if #record == 0 then return {} end
  return {record, redis.call('LINDEX', key(id) .. ':loss', -1), redis.call('LRANGE', key(id) .. ':transitions', 0, -1),
    place_of(id)}
end

-- named kind where name: the job that a name names. By `kind` it is an id itself (id), the highest of a ranking (ranking), or a
-- field of a hash of aliases (alias); `where` is the key of the ranking or the hash.
-- -> {id, record, whose it was if it is an id whose job was deleted with a model} | {} when it names nothing
function reads.named(kind, where, name)
  local id = name
  if kind == 'ranking' then id = redis.call('ZREVRANGE', where, 0, 0)[1] end
  if kind == 'alias' then id = redis.call('HGET', where, name) end
  if not id then return {} end
  return {id, redis.call('HGETALL', key(id)), redis.call('GET', 'descent:deleted:' .. id)}
end

-- told id: {status, number of loss points, of epochs, of transitions} | {}
function reads.told(id)
  local status = redis.call('HGET', key(id), 'status')
  if not status then return {} end
  local told = {status}
  for _, list in ipairs({':loss', ':epochs', ':transitions'}) do table.insert(told, redis.call('LLEN', key(id) .. list)) end
  return told
end

-- loss id start limit from_step: at most `limit` points from index `start` on; a `from_step` ('' for none) says that as many
-- points as there must be before that step may be left out.
-- -> {status, number of points, index of the first given, points, first, last, lowest} | {}
function reads.loss(id, start, limit, from_step)
  local record = redis.call('HMGET', key(id), 'status', 'least_index')
  if not record[1] then return {} end
  local history, first = key(id) .. ':loss', tonumber(start)
  if from_step ~= '' then
    local log_every = cjson.decode(redis.call('HGET', key(id), 'spec')).log_every
    first = math.max(first, math.floor(tonumber(from_step) / log_every))
  end
  return {record[1], redis.call('LLEN', history), first, redis.call('LRANGE', history, first, first + limit - 1),
    redis.call('LINDEX', history, 0), redis.call('LINDEX', history, -1), redis.call('LINDEX', history, record[2] or 0)}
end

local TERMINAL = {succeeded = true, failed = true, cancelled = true}

-- standing id: of a sweep: {JSON of status -> jobs, steps in all, steps done (all of a job that has ended), jobs begun}
function reads.standing(id)
  local counts, steps, done, begun = {}, 0, 0, 0
  for _, job in ipairs(redis.call('LRANGE', 'descent:sweep:' .. id .. ':jobs', 0, -1)) do
    local record = redis.call('HMGET', key(job), 'status', 'steps_done', 'total_steps')
    local status = record[1]
    if status then
      counts[status] = (counts[status] or 0) + 1
      steps = steps + record[3]
      done = done + (TERMINAL[status] and record[3] or record[2])
      if status ~= 'queued' or record[2] ~= '0' then begun = begun + 1 end
    end
  end
  return {cjson.encode(counts), steps, done, begun}
end

-- page set upper look limit label...: of the `look` newest ids below `upper` (as ZRANGE BYLEX takes it) in the smallest of the
-- set and those of the labels, the jobs that are in all, at most `limit`.
-- -> {the last id looked at ('': there are no more), id, record, last point, id, record, ...}
function reads.page(set, upper, look, limit, ...)
  local sets, smallest, left = {set}, set, tonumber(limit)
  for _, label in ipairs({...}) do
    table.insert(sets, 'descent:labelled:' .. label)
    if redis.call('ZCARD', sets[#sets]) < redis.call('ZCARD', smallest) then smallest = sets[#sets] end
  end
  local ids = redis.call('ZRANGE', smallest, upper, '-', 'BYLEX', 'REV', 'LIMIT', 0, look)
  local found = {#ids < tonumber(look) and '' or ids[#ids]}
  for _, id in ipairs(ids) do
    local fits = left > 0
    for _, name in ipairs(sets) do fits = fits and (name == smallest or redis.call('ZSCORE', name, id)) end
    if fits then
      left = left - 1
      for _, part in ipairs({id, redis.call('HGETALL', key(id)), redis.call('LINDEX', key(id) .. ':loss', -1)}) do
        table.insert(found, part)
      end
    end
  end
  return found
end

-- workers: what each worker that is alive said of itself: {name, info, ...}, by name
function reads.workers()
  local found = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', 'descent:workers', '(' .. now, '+inf')) do
    table.insert(found, name)
    table.insert(found, redis.call('HGET', 'descent:workers:info', name))
  end
  return found
end

return reads[ARGV[1]](unpack(ARGV, 2))
