-- Heartbeats and leases on the server's clock. ARGV[1] says what; replies are msgpack integers.
--   beat   KEYS[1] the live workers, ARGV worker, ttl in ms -> how many live
--   leave  KEYS[1] the live workers, ARGV worker
--   lease  KEYS[1] the lease, ARGV worker, ttl in ms -> 1 held by this worker, 0 by another
--   free   KEYS[1] the lease, ARGV worker
local what, key, worker = ARGV[1], KEYS[1], ARGV[2]
local answer = 0
if what == 'beat' then
  local t = redis.call('TIME')
  local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  redis.call('ZADD', key, string.format('%.0f', now + tonumber(ARGV[3])), worker)
  if redis.call('PTTL', key) < tonumber(ARGV[3]) then redis.call('PEXPIRE', key, ARGV[3]) end
  answer = redis.call('ZCARD', key)
elseif what == 'leave' then
  redis.call('ZREM', key, worker)
elseif what == 'lease' then
  local holder = redis.call('GET', key)
  if not holder or holder == worker then
    redis.call('SET', key, worker, 'PX', ARGV[3])
    answer = 1
  end
elseif redis.call('GET', key) == worker then
  redis.call('DEL', key)
end
return cmsgpack.pack(answer)
