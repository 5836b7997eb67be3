-- Heartbeats and leases on the server's clock. ARGV[1] says what; replies are msgpack.
--   beat   KEYS as below, ARGV worker, ttl in ms, digest of its configuration, generation it was told of that or 0
--          -> {how many live, its generation}
--   leave  KEYS as below, ARGV worker
--   lease  KEYS[1] the lease, ARGV worker, ttl in ms -> 1 held by this worker, 0 by another
--   free   KEYS[1] the lease, ARGV worker
--   note   KEYS[1] a list, ARGV '', 0, names in use now -> every name with the ms since it was, as {{name, ms}, ...}
--   strike KEYS[1] a list, ARGV name, ms: strikes it off if it has not been in use for as long
-- KEYS of the first two: the live workers, what they are configured to, the newest generation among them.
-- A generation is since when some live worker has had a configuration: in the hash, 'w:' worker -> digest and
-- 'd:' digest -> generation.
local what, key, worker = ARGV[1], KEYS[1], ARGV[2]
local answer = 0

local function clock_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- Forgets who is gone, and configurations nobody has; tells the limiter which is the newest.
local function census()
  local entries, has, held, newest = redis.call('HGETALL', KEYS[2]), {}, {}, 0
  for at = 1, #entries, 2 do
    local name = string.match(entries[at], '^w:(.*)$')
    if name then
      if redis.call('ZSCORE', key, name) then held[entries[at + 1]] = true
      else redis.call('HDEL', KEYS[2], entries[at]) end
    end
  end
  for at = 1, #entries, 2 do
    local digest = string.match(entries[at], '^d:(.*)$')
    if digest then
      if held[digest] then has[digest] = tonumber(entries[at + 1]); newest = math.max(newest, has[digest])
      else redis.call('HDEL', KEYS[2], entries[at]) end
    end
  end
  return has, newest
end

if what == 'beat' then
  local now_us = clock_us()
  local now = math.floor(now_us / 1000)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  local digest, known = ARGV[4], tonumber(ARGV[5])
  local has, newest = census()
  redis.call('ZADD', key, string.format('%.0f', now + tonumber(ARGV[3])), worker)
  if redis.call('PTTL', key) < tonumber(ARGV[3]) then redis.call('PEXPIRE', key, ARGV[3]) end
  redis.call('HSET', KEYS[2], 'w:' .. worker, digest)
  local first = known > 0 and known or math.max(now_us, newest + 1)
  local generation = math.min(has[digest] or first, first)
  if generation ~= has[digest] then redis.call('HSET', KEYS[2], 'd:' .. digest, string.format('%.0f', generation)) end
  newest = 0
  has[digest] = generation
  for _, since in pairs(has) do newest = math.max(newest, since) end
  redis.call('SET', KEYS[3], string.format('%.0f', newest))
  answer = {redis.call('ZCARD', key), generation}
elseif what == 'leave' then
  redis.call('ZREM', key, worker)
  local _, newest = census()
  if newest > 0 then redis.call('SET', KEYS[3], string.format('%.0f', newest)) else redis.call('DEL', KEYS[3]) end
elseif what == 'lease' then
  local holder = redis.call('GET', key)
  if not holder or holder == worker then
    redis.call('SET', key, worker, 'PX', ARGV[3])
    answer = 1
  end
elseif what == 'note' then
  local now = math.floor(clock_us() / 1000)
  for i = 4, #ARGV do redis.call('ZADD', key, string.format('%.0f', now), ARGV[i]) end
  answer = {}
  local noted = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for i = 1, #noted, 2 do answer[#answer + 1] = {noted[i], math.max(0, now - tonumber(noted[i + 1]))} end
elseif what == 'strike' then
  local at = redis.call('ZSCORE', key, worker)
  if at and tonumber(at) + tonumber(ARGV[3]) <= math.floor(clock_us() / 1000) then redis.call('ZREM', key, worker) end
elseif redis.call('GET', key) == worker then
  redis.call('DEL', key)
end
return cmsgpack.pack(answer)
