-- What each live worker last said. KEYS[1] the reports by worker, KEYS[2] until when each counts, on the server's clock.
--   put   ARGV worker, text, ttl in ms
--   drop  ARGV worker
--   get   -> the texts, in the order of the workers' names
local what, worker = ARGV[1], ARGV[2]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local out = {}
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now))) do
  redis.call('HDEL', KEYS[1], gone)
  redis.call('ZREM', KEYS[2], gone)
end
if what == 'put' then
  local ttl = tonumber(ARGV[4])
  redis.call('HSET', KEYS[1], worker, ARGV[3])
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ttl), worker)
  for i = 1, 2 do
    if redis.call('PTTL', KEYS[i]) < ttl then redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
  end
elseif what == 'drop' then
  redis.call('HDEL', KEYS[1], worker)
  redis.call('ZREM', KEYS[2], worker)
else
  local names = redis.call('HKEYS', KEYS[1])
  table.sort(names)
  for i, name in ipairs(names) do out[i] = redis.call('HGET', KEYS[1], name) end
end
return cmsgpack.pack(out)
