-- Every change of a job or a batch: one verb, one atomic step, by the clock of this server.
--
-- KEYS[1]: prefix of all keys, with the hash tag that keeps them in one slot of a cluster.
-- ARGV[1]: verb. ARGV[2]: its arguments, as JSON. Returns JSON.
--
-- Each verb may be repeated: if its answer was lost, asking again changes nothing and gives the same answer.
--
-- A job belongs to a group: its batch, or itself alone. Its id is GROUP-INDEX in a batch, and GROUP alone.
-- Its subqueue is 'QUEUE OPERATION VERSION': a consumer takes from the subqueues whose operation it has.
--
--   job:ID        hash     subqueue score state tries fence bytes name created started ended owner cancel reported
--                          progress result error
--   group:ID      hash     facts total remaining completed failed cancelled is_batch owner sealed created ended
--   log:GROUP     list     one line per job that ended, and one when all have: a position is an event id
--   wait:SUBQUEUE     zset     waiting jobs by score: priority, then order of submission
--   subqueues     set      those in which a job waits
--   due           zset     delayed jobs, by when they are due
--   lease         zset     active jobs, by when their lease ends
--   heard         string   when a consumer last called
--   bell:KIND     zset     one member while a job of 'OPERATION VERSION' waits: idle consumers block on it
--   counts:QUEUE  hash     jobs per state; ended: how many have, ever
--   failed:QUEUE  zset     failed jobs, by when they failed
--   totals        hash     jobs and bytes that are not final; gap_ms: moving average between two ends
--   claims        hash     'OWNER KIND …', as it asked: its last request and what it was given
--   owners        zset     processes that use this store, by their last heartbeat
--   unsealed      zset     batches that are still being submitted, by when that began
--   expiry        zset     groups that have ended, by when they expire
--   gone:GROUP    string   an expired or dropped group, for a time
--   idem:HASH     string   fingerprint and group of an idempotency key
--   paused        set      queues
--   janitor       hash     owner, until, fence; since: from when on there was one at any time
-- sealed of a batch: 1 when its submission is complete, 0 before, -1 when it is removed instead.
-- Channels: news:GROUP (its log grew), cancel:OWNER (a job of it is to stop). Both are hints.

local prefix, verb, args = KEYS[1], ARGV[1], cjson.decode(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local PRIORITY = 2 ^ 40 -- more submissions than a sequence will ever see
local CHUNK = 500 -- how many jobs one call goes through at most
local HEARD_EVERY_MS = 250 -- each note is a write to the disk
local CALL_EVERY_MS = 1000 -- a consumer calls at least as often
local LOST = '{"error": "TooManyAttempts"}' -- the error of a job whose consumers died
local REMOVING = '-1' -- instead of sealed: no item and no seal may come any more
local IS_FINAL = { completed = true, failed = true, cancelled = true }

local function key(...)
  return prefix .. table.concat({ ... }, ':')
end

local function read(of, ...)
  local values = redis.call('HMGET', of, ...)
  local found = {}
  for i, name in ipairs({ ... }) do
    found[name] = values[i] or nil
  end
  return found
end

local function load(id)
  local job = read(key('job', id), 'subqueue', 'score', 'state', 'tries', 'fence', 'bytes', 'owner', 'cancel', 'reported')
  if not job.state then
    return nil
  end
  job.id = id
  job.group = id:match('^(%x+)%-') or id
  job.queue, job.kind = job.subqueue:match('^(%S+) (.+)$')
  job.tries, job.fence, job.bytes = tonumber(job.tries), tonumber(job.fence), tonumber(job.bytes)
  return job
end

local function facts_of(group)
  return cjson.decode(redis.call('HGET', key('group', group), 'facts'))
end

local function log(group, line)
  line.at = now
  redis.call('RPUSH', key('log', group), cjson.encode(line))
  redis.call('PUBLISH', key('news', group), '')
end

-- The only place where a state changes.
local function move(job, to)
  local counts = key('counts', job.queue)
  if job.state then
    redis.call('HINCRBY', counts, job.state, -1)
  end
  redis.call('HINCRBY', counts, to, 1)
  redis.call('HSET', key('job', job.id), 'state', to)
  job.state = to
end

local function ring(kind)
  redis.call('ZADD', key('bell', kind), 0, 'ring')
end

local function wait(job)
  move(job, 'waiting')
  redis.call('ZADD', key('wait', job.subqueue), job.score, job.id)
  redis.call('SADD', key('subqueues'), job.subqueue)
  if redis.call('SISMEMBER', key('paused'), job.queue) == 0 then
    ring(job.kind)
  end
end

local function delay(job, until_ms)
  move(job, 'delayed')
  redis.call('ZADD', key('due'), until_ms, job.id)
end

-- Take a job out of wherever it is queued.
local function leave(job)
  if job.state == 'waiting' then
    redis.call('ZREM', key('wait', job.subqueue), job.id)
    if redis.call('EXISTS', key('wait', job.subqueue)) == 0 then
      redis.call('SREM', key('subqueues'), job.subqueue)
    end
  elseif job.state == 'delayed' then
    redis.call('ZREM', key('due'), job.id)
  elseif job.state == 'active' then
    redis.call('ZREM', key('lease'), job.id)
  elseif job.state == 'failed' then
    redis.call('ZREM', key('failed', job.queue), job.id)
  end
end

local function count_live(job, sign)
  redis.call('HINCRBY', key('totals'), 'jobs', sign)
  redis.call('HINCRBY', key('totals'), 'bytes', sign * job.bytes + 0) -- no negative zero
end

local function new_group(group, facts, is_batch, owner)
  redis.call('HSET', key('group', group), 'facts', facts, 'is_batch', is_batch and 1 or 0,
    'sealed', is_batch and 0 or 1, 'owner', owner, 'created', now,
    'total', 0, 'remaining', 0, 'completed', 0, 'failed', 0, 'cancelled', 0)
end

local submit_one -- below: a callback is a job too

local function end_group(group)
  local at = key('group', group)
  redis.call('HSET', at, 'ended', now)
  redis.call('ZADD', key('expiry'), now + args.ttl_ms, group)
  local counts = read(at, 'total', 'completed', 'failed', 'cancelled')
  local ended = {
    total = tonumber(counts.total),
    completed = tonumber(counts.completed),
    failed = tonumber(counts.failed),
    cancelled = tonumber(counts.cancelled),
  }
  log(group, { ended = ended })
  local callback = facts_of(group).callback
  if callback then
    local id = redis.sha1hex(group .. ' ' .. redis.call('INCR', key('sequence')))
    local is_batch = redis.call('HGET', at, 'is_batch') == '1'
    new_group(id, cjson.encode({ operation = 'callback', version = 1, attempts = callback.attempts,
      parameters = { url = callback.url, group = group, is_batch = is_batch, ended_ms = now, counts = ended } }),
      false, 'store')
    submit_one(id, id, { subqueue = 'callbacks callback 1', priority = 5, bytes = 0 })
  end
end

local function count_end()
  local totals = read(key('totals'), 'gap_ms', 'last_ms')
  local gap = math.min(now - (tonumber(totals.last_ms) or now), 60000)
  local average = tonumber(totals.gap_ms) or gap
  redis.call('HSET', key('totals'), 'gap_ms', average + (gap - average) / 16, 'last_ms', now)
end

-- Make a job final. `fields` are written to its hash.
local function finish(job, state, fields)
  leave(job)
  move(job, state)
  count_live(job, -1)
  count_end()
  redis.call('HINCRBY', key('counts', job.queue), 'ended', 1)
  if state == 'failed' then
    redis.call('ZADD', key('failed', job.queue), now, job.id)
  end
  redis.call('HSET', key('job', job.id), 'ended', now, unpack(fields))
  redis.call('HDEL', key('job', job.id), 'cancel', 'owner')
  local at = key('group', job.group)
  redis.call('HINCRBY', at, state, 1)
  local remaining = redis.call('HINCRBY', at, 'remaining', -1)
  log(job.group, { job = job.id, state = state })
  if remaining == 0 and redis.call('HGET', at, 'sealed') == '1' then
    end_group(job.group)
  end
end

local function back_off_ms(tries)
  return math.min(1000 * 2 ^ (tries - 1), 3600000)
end

-- A try has failed, or was lost with its consumer.
local function try_again(job, wait_ms, error)
  if job.cancel then
    finish(job, 'cancelled', {})
  elseif job.tries >= facts_of(job.group).attempts then
    finish(job, 'failed', { 'error', error })
  else
    leave(job)
    redis.call('HSET', key('job', job.id), 'error', error)
    redis.call('HDEL', key('job', job.id), 'owner', 'progress')
    if wait_ms > 0 then
      delay(job, now + wait_ms)
    else
      wait(job)
    end
  end
end

-- Note that a consumer calls. If none did for a time, the store was away and nobody could renew, so leases are
-- extended by that time; otherwise the first owner to ask would end those of all others. None is extended beyond
-- a whole lease: versions that note no calls may have renewed it meanwhile.
local function hear()
  local heard = redis.call('GET', key('heard'))
  local silence = now - (heard or now)
  if not heard or math.abs(silence) >= HEARD_EVERY_MS then -- the clock may have been set back
    redis.call('SET', key('heard'), now)
  end
  if silence > 1.5 * CALL_EVERY_MS then
    local leases = redis.call('ZRANGE', key('lease'), 0, -1, 'WITHSCORES')
    for at = 1, #leases, 2 do
      local ends = tonumber(leases[at + 1])
      local extended = math.min(ends + silence - CALL_EVERY_MS, now + args.lease_ms)
      redis.call('ZADD', key('lease'), math.max(ends, extended), leases[at])
    end
  end
end

-- Keep the leases of jobs, a hash of fences by id; tell which are lost, and which are to be cancelled.
-- To be called before leases are found to have ended: the owner of these lives.
local function renew(fences)
  hear()
  local lost, cancelled = {}, {}
  for id, fence in pairs(fences) do
    local job = load(id)
    if not job or job.state ~= 'active' or job.fence ~= fence then
      table.insert(lost, id)
    else
      redis.call('ZADD', key('lease'), now + args.lease_ms, id)
      if job.cancel then
        table.insert(cancelled, id)
      end
    end
  end
  return { lost = lost, cancelled = cancelled }
end

-- Bring what time alone has changed up to date.
local function catch_up()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('due'), '-inf', now, 'LIMIT', 0, CHUNK)) do
    local job = load(id)
    leave(job)
    wait(job)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('lease'), '-inf', now, 'LIMIT', 0, CHUNK)) do
    try_again(load(id), 0, LOST)
  end
end

function submit_one(id, group, job)
  local sequence = redis.call('INCR', key('sequence'))
  job.id, job.score = id, string.format('%.0f', job.priority * PRIORITY + sequence)
  job.queue, job.kind = job.subqueue:match('^(%S+) (.+)$')
  redis.call('HSET', key('job', id), 'subqueue', job.subqueue, 'score', job.score, 'tries', 0, 'fence', 0,
    'bytes', job.bytes, 'created', now)
  if job.name then
    redis.call('HSET', key('job', id), 'name', job.name)
  end
  redis.call('HINCRBY', key('group', group), 'total', 1)
  redis.call('HINCRBY', key('group', group), 'remaining', 1)
  count_live(job, 1)
  local due = math.max(now + (job.delay_ms or 0), job.not_before_ms or 0)
  if due > now then
    delay(job, due)
  else
    wait(job)
  end
end

-- Look an idempotency key up; nil: it is new.
local function look_up(idempotency)
  if not idempotency then
    return nil
  end
  local known = redis.call('GET', key('idem', idempotency.key))
  if not known then
    return nil
  end
  local fingerprint, group = known:match('^(%x+) (%x+)$')
  if redis.call('EXISTS', key('group', group)) == 0 then
    return nil -- expired
  end
  return fingerprint == idempotency.fingerprint and { same = group } or { reused = true }
end

local function remember(idempotency, group)
  if idempotency then
    redis.call('SET', key('idem', idempotency.key), idempotency.fingerprint .. ' ' .. group, 'PX', idempotency.ttl_ms)
  end
end

local verbs = {}

-- Add jobs to a group; the first call makes the group.
function verbs.submit()
  local at, group = key('group', args.group), args.group
  local function id_of(job)
    return args.is_batch and group .. '-' .. job.index or group
  end
  if redis.call('EXISTS', key('job', id_of(args.jobs[1]))) == 1 then
    return { accepted = true } -- asked again
  end
  local sealed = redis.call('HGET', at, 'sealed')
  local is_new = not sealed
  local is_late = args.is_batch and (args.jobs[1].index > 0 or redis.call('EXISTS', key('gone', group)) == 1)
  if sealed == REMOVING or is_new and is_late then
    return { gone = true } -- dropped meanwhile
  end
  local known = is_new and look_up(args.idempotency)
  if known then
    return known
  end
  local totals, bytes = read(key('totals'), 'jobs', 'bytes', 'gap_ms'), 0
  for _, job in ipairs(args.jobs) do
    bytes = bytes + job.bytes
  end
  if
    (tonumber(totals.jobs) or 0) + #args.jobs > args.max_jobs
    or (tonumber(totals.bytes) or 0) + bytes > args.max_bytes
  then
    return { full = true, gap_ms = tonumber(totals.gap_ms) or 1000 }
  end
  if is_new then
    new_group(group, args.facts, args.is_batch, args.owner)
    if args.is_batch then
      redis.call('ZADD', key('unsealed'), now, group)
    else
      remember(args.idempotency, group)
    end
  end
  for _, job in ipairs(args.jobs) do
    submit_one(id_of(job), group, job)
  end
  return { accepted = true }
end

-- Say that a batch is complete.
function verbs.seal()
  local at = key('group', args.group)
  local batch = read(at, 'sealed', 'remaining')
  if not batch.sealed or batch.sealed == REMOVING then
    return { gone = true }
  end
  if batch.sealed == '0' then
    local known = look_up(args.idempotency)
    if known then
      return known
    end
    remember(args.idempotency, args.group)
    redis.call('HSET', at, 'sealed', 1)
    redis.call('ZREM', key('unsealed'), args.group)
    if batch.remaining == '0' then
      end_group(args.group)
    end
  end
  return { accepted = true }
end

-- Give an owner up to `count` jobs of the kinds that it has: the first by score, over all subqueues. Those
-- that it holds, a hash of fences by id, stay its own.
function verbs.claim()
  local held = args.held or {}
  local asker = args.owner .. ' ' .. table.concat(args.kinds, ' ')
  local last = redis.call('HGET', key('claims'), asker)
  if last then
    last = cjson.decode(last)
    if last.request == args.request then
      for _, job in ipairs(last.answer.jobs) do
        held[job.id] = job.fence
      end
      renew(held)
      return last.answer
    end
  end
  renew(held)
  catch_up()
  local is_known, is_paused = {}, {}
  for _, kind in ipairs(args.kinds) do
    is_known[kind] = true
  end
  for _, queue in ipairs(redis.call('SMEMBERS', key('paused'))) do
    is_paused[queue] = true
  end
  local subqueues = {}
  for _, subqueue in ipairs(redis.call('SMEMBERS', key('subqueues'))) do
    local queue, kind = subqueue:match('^(%S+) (.+)$')
    if is_known[kind] and not is_paused[queue] then
      table.insert(subqueues, subqueue)
    end
  end
  local claimed = {}
  for taken = 1, args.count + 1 do
    local best, score
    for _, subqueue in ipairs(subqueues) do
      local first = redis.call('ZRANGE', key('wait', subqueue), 0, 0, 'WITHSCORES')
      if first[1] and (not score or tonumber(first[2]) < score) then
        best, score = first[1], tonumber(first[2])
      end
    end
    if not best then
      break
    end
    local job = load(best)
    if taken > args.count then
      ring(job.kind) -- for the next consumer
      break
    end
    leave(job)
    move(job, 'active')
    job.fence, job.tries = job.fence + 1, job.tries + 1
    redis.call('ZADD', key('lease'), now + args.lease_ms, job.id)
    redis.call('HSET', key('job', job.id), 'fence', job.fence, 'tries', job.tries, 'owner', args.owner, 'started', now)
    table.insert(claimed, {
      id = job.id,
      group = job.group,
      fence = job.fence,
      tries = job.tries,
      facts = redis.call('HGET', key('group', job.group), 'facts'),
    })
  end
  local due = redis.call('ZRANGE', key('due'), 0, 0, 'WITHSCORES')
  local answer = { jobs = claimed, due_ms = due[2] and math.max(0, due[2] - now) }
  if #claimed > 0 then -- else the same may be asked again, and the disk is spared a write
    redis.call('HSET', key('claims'), asker, cjson.encode({ request = args.request, answer = answer }))
  end
  return answer
end

-- Renew leases, and note how far jobs are.
function verbs.renew()
  local renewal = renew(args.fences)
  catch_up()
  for id, percent in pairs(args.progress) do
    local job = load(id)
    if job and job.state == 'active' and job.fence == args.fences[id] then
      redis.call('HSET', key('job', id), 'progress', percent)
    end
  end
  return renewal
end

-- Report how a try ended: completed, failed, again (after a back-off) or released (as if it had not begun).
function verbs.finish()
  local job = load(args.id)
  if not job then
    return { refused = true }
  end
  if job.reported == tostring(args.fence) then
    return { state = job.state } -- asked again
  end
  if job.state ~= 'active' or job.fence ~= args.fence then
    return { refused = true }
  end
  redis.call('HSET', key('job', job.id), 'reported', args.fence)
  if job.cancel then
    finish(job, 'cancelled', {})
  elseif args.how == 'released' then
    leave(job)
    redis.call('HINCRBY', key('job', job.id), 'tries', -1)
    redis.call('HDEL', key('job', job.id), 'owner', 'progress')
    wait(job)
  elseif args.how == 'again' then
    try_again(job, back_off_ms(job.tries), args.error)
  elseif args.how == 'completed' then
    finish(job, 'completed', args.result and { 'result', args.result } or {})
    redis.call('HDEL', key('job', job.id), 'error', 'progress')
  else
    finish(job, 'failed', { 'error', args.error })
  end
  return { state = job.state }
end

-- Cancel a job: at once if it waits, else its consumer is asked to. Jobs that have ended stay as they are.
local function cancel(job)
  if job.state == 'waiting' or job.state == 'delayed' then
    finish(job, 'cancelled', {})
  elseif job.state == 'active' then
    redis.call('HSET', key('job', job.id), 'cancel', 1)
    redis.call('PUBLISH', key('cancel', job.owner), job.id)
  end
end

-- Go through the jobs of a group from one index on; returns the next index, or nil.
local function each(group, from, act)
  local at = read(key('group', group), 'total', 'is_batch')
  if not at.total then
    return nil
  end
  if at.is_batch == '0' then
    local job = load(group)
    if job then
      act(job)
    end
    return nil
  end
  local last = math.min(from + CHUNK, tonumber(at.total)) - 1
  for index = from, last do
    local job = load(group .. '-' .. index)
    if job then
      act(job)
    end
  end
  return last + 1 < (tonumber(at.total)) and last + 1 or nil
end

function verbs.cancel_job()
  local job = load(args.id)
  if not job then
    return { gone = true }
  end
  cancel(job)
  return { state = job.state }
end

function verbs.cancel_group()
  return { next = each(args.group, args.from, cancel) }
end

-- Delete a group with all its jobs, whatever their state: a consumer that has one will find that out.
local function forget(group, from)
  local at = key('group', group)
  local next = each(group, from, function(job)
    if not IS_FINAL[job.state] then
      count_live(job, -1)
    end
    leave(job)
    redis.call('HINCRBY', key('counts', job.queue), job.state, -1)
    redis.call('DEL', key('job', job.id))
  end)
  if not next then
    redis.call('DEL', at, key('log', group))
    redis.call('ZREM', key('unsealed'), group)
    redis.call('ZREM', key('expiry'), group)
  end
  return next
end

-- Drop a batch whose upload has failed. A sealed one stays: only the answer to the seal was lost, and its
-- idempotency key may refer to it already.
function verbs.drop()
  local at = key('group', args.group)
  local sealed = redis.call('HGET', at, 'sealed')
  if sealed == '1' then
    return { refused = true }
  end
  if sealed then
    redis.call('HSET', at, 'sealed', REMOVING)
  end
  local next = forget(args.group, args.from)
  if not next then
    redis.call('SET', key('gone', args.group), 1, 'PX', args.remember_ms) -- or a late submission would make it again
  end
  return { next = next }
end

-- Let a failed or cancelled job run again, from its first try.
function verbs.retry()
  local job = load(args.id)
  if not job then
    return { gone = true }
  end
  local expires = redis.call('ZSCORE', key('expiry'), job.group)
  if expires and tonumber(expires) <= now then
    return { expired = true } -- its files are being removed
  end
  if job.state == 'failed' or job.state == 'cancelled' then
    local at = key('group', job.group)
    redis.call('HINCRBY', at, job.state, -1)
    redis.call('HINCRBY', at, 'remaining', 1)
    redis.call('HDEL', at, 'ended')
    redis.call('ZREM', key('expiry'), job.group)
    leave(job)
    count_live(job, 1)
    redis.call('HSET', key('job', job.id), 'tries', 0)
    redis.call('HDEL', key('job', job.id), 'ended', 'error', 'progress')
    wait(job)
    log(job.group, { job = job.id, state = job.state }) -- the log has no end any more
  end
  return { state = job.state }
end

function verbs.pause()
  redis.call('SADD', key('paused'), args.queue)
  return {}
end

function verbs.resume()
  redis.call('SREM', key('paused'), args.queue)
  for _, subqueue in ipairs(redis.call('SMEMBERS', key('subqueues'))) do
    local queue, kind = subqueue:match('^(%S+) (.+)$')
    if queue == args.queue then
      ring(kind)
    end
  end
  return {}
end

-- The heartbeat of an owner: only one that is silent is taken for dead.
function verbs.beat()
  redis.call('ZADD', key('owners'), now, args.owner)
  return {}
end

-- Name the owners that hold jobs.
function verbs.holders()
  hear()
  local holders, is_known = {}, {}
  for _, id in ipairs(redis.call('ZRANGE', key('lease'), 0, -1)) do
    local owner = redis.call('HGET', key('job', id), 'owner')
    if not is_known[owner] then
      is_known[owner] = true
      table.insert(holders, owner)
    end
  end
  return { owners = holders }
end

local function forget_owner(owner)
  for _, asker in ipairs(redis.call('HKEYS', key('claims'))) do
    if asker:match('^%S+') == owner then
      redis.call('HDEL', key('claims'), asker)
    end
  end
  redis.call('ZREM', key('owners'), owner)
end

-- Take the jobs of a dead owner back before their leases end.
function verbs.release()
  local released = 0
  for _, id in ipairs(redis.call('ZRANGE', key('lease'), 0, -1)) do
    local job = load(id)
    if job.owner == args.owner then
      try_again(job, 0, LOST)
      released = released + 1
    end
  end
  forget_owner(args.owner)
  return { released = released }
end

-- Become the janitor, or stay it; only one is, over all machines.
function verbs.sweep()
  local at = key('janitor')
  local janitor = read(at, 'owner', 'until', 'fence', 'since')
  local has_ended = not janitor.owner or tonumber(janitor['until']) <= now
  if janitor.owner ~= args.owner then
    if not has_ended then
      return {}
    end
    janitor.fence = redis.call('HINCRBY', at, 'fence', 1)
  end
  local since = not has_ended and tonumber(janitor.since) or now
  redis.call('HSET', at, 'owner', args.owner, 'until', now + args.lease_ms, 'since', since)
  local groups = redis.call('ZRANGEBYSCORE', key('expiry'), '-inf', now, 'LIMIT', 0, args.count)
  if now - since < args.silent_ms then
    return { fence = tonumber(janitor.fence), groups = groups } -- while the store was away, all were silent
  end
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', key('owners'), '-inf', now - args.silent_ms)) do
    forget_owner(owner)
  end
  -- Batches whose upload ended with the process that received it.
  for _, group in ipairs(redis.call('ZRANGEBYSCORE', key('unsealed'), '-inf', now - args.silent_ms, 'LIMIT', 0, args.count)) do
    if not redis.call('ZSCORE', key('owners'), redis.call('HGET', key('group', group), 'owner')) then
      redis.call('HSET', key('group', group), 'sealed', REMOVING) -- its files are removed first, and its owner may be alive after all
      table.insert(groups, group)
    end
  end
  return { fence = tonumber(janitor.fence), groups = groups }
end

-- Forget a group whose files are gone.
function verbs.expire()
  if redis.call('HGET', key('janitor'), 'fence') ~= tostring(args.fence) then
    return { refused = true }
  end
  local next = forget(args.group, args.from)
  if not next then
    redis.call('SET', key('gone', args.group), 1, 'PX', args.remember_ms)
  end
  return { next = next }
end

return cjson.encode(verbs[verb]())
