-- What each of the scripts beside this file begins with (see `script_of` in database.py): the time, a job's key, the queues.
--
-- A job that waits is at home in one queue: whoever listens to it can train the job. Every worker listens to that of the CPU,
-- so jobs that any worker can train (device cpu and auto) are at home there; one with a GPU also to that of GPUs and to the one
-- of its number. descent:queued:<queue> are the jobs at home in it (id -> created), which together are descent:queued.
-- descent:workers:listening is queue -> until when a worker that listens to it is surely alive.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local CPU, GPU = 'descent.train.cpu', 'descent.train.gpu'
local QUEUES = {CPU, GPU}
for number = 0, 15 do table.insert(QUEUES, GPU .. '.' .. number) end

local function key(id) return 'descent:job:' .. id end

local function at_home_in(queue) return 'descent:queued:' .. queue end

local function is_served(queue) return (tonumber(redis.call('ZSCORE', 'descent:workers:listening', queue)) or 0) > now end

-- the queue that a job is at home in, and the device it asks for (`needs` in core/spec.py says the same of a spec)
local function home_of(id)
  local spec = cjson.decode(redis.call('HGET', key(id), 'spec'))
  local number = spec.device:match('^gpu:(%d+)$')
  if number then return GPU .. '.' .. number, spec.device end
  local wants_gpu = spec.device == 'gpu' or spec.to_static or (spec.precision or 'float32') ~= 'float32'
  return wants_gpu and GPU or CPU, spec.device
end

-- of a job that waits: its place among those that are at home in the same queue, and 1 or 0, whether a live worker listens to
-- it; false, 0 for any other job
local function place_of(id)
  local rank = redis.call('ZRANK', 'descent:queued', id)
  if not rank then return false, 0 end
  local home = home_of(id)
  return redis.call('ZRANK', at_home_in(home), id) or rank, is_served(home) and 1 or 0
end
