#!lua flags=allow-oom
-- What /metrics says of the store, all of one moment, at the cost of a few reads however many jobs there are: the moves
-- (moves.lua) keep the counts. -> {status, jobs, ...}, {event, times, ...}, queued, those of them that only a GPU trains, those
-- that no live worker can train, ms the longest waited or -1, {a worker's info, ...}, {images/s and backend of a running job,
-- ...}, bytes used, limit in bytes (0: none)

-- A database of before there were counts, or one in which somebody wrote by hand, is counted once. Every job that is not
-- counted makes the sum one too small, whatever it did since.
local function recount()
  local ids = redis.call('ZRANGE', 'descent:jobs', 0, -1)
  redis.call('DEL', 'descent:counts')
  for _, id in ipairs(ids) do
    local record = redis.call('HMGET', key(id), 'status', 'updated_ms')
    redis.call('HINCRBY', 'descent:counts', record[1], 1)
    if redis.call('ZSCORE', 'descent:queued', id) then redis.call('ZADD', 'descent:waiting', 'NX', record[2], id) end
  end
end

local counted = 0
for _, jobs in ipairs(redis.call('HVALS', 'descent:counts')) do counted = counted + jobs end
if counted ~= redis.call('ZCARD', 'descent:jobs') then recount() end

local oldest = redis.call('ZRANGE', 'descent:waiting', 0, 0, 'WITHSCORES')[2]

local gpu_jobs, stuck_jobs = 0, 0
for _, queue in ipairs(QUEUES) do
  local jobs = redis.call('ZCARD', at_home_in(queue))
  if queue ~= CPU then gpu_jobs = gpu_jobs + jobs end
  if not is_served(queue) then stuck_jobs = stuck_jobs + jobs end
end

local workers = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', 'descent:workers', now, '+inf')) do
  table.insert(workers, redis.call('HGET', 'descent:workers:info', name))
end

local running = {}
for _, id in ipairs(redis.call('ZRANGE', 'descent:running', 0, -1)) do
  local record = redis.call('HMGET', key(id), 'images_per_s', 'backend')
  if record[1] and record[2] then
    table.insert(running, record[1])
    table.insert(running, record[2])
  end
end

local memory = redis.call('INFO', 'memory')
return {
  redis.call('HGETALL', 'descent:counts'), redis.call('HGETALL', 'descent:totals'),
  redis.call('ZCARD', 'descent:queued'), gpu_jobs, stuck_jobs, oldest and now - oldest or -1, workers, running,
  tonumber(memory:match('used_memory:(%d+)')), tonumber(memory:match('maxmemory:(%d+)')),
}
