-- Takes turns in lines. KEYS: the lines, each with where its turns end, in us of the server's clock.
-- ARGV, three for each: from, takes, before. Returns when the first turn of each begins.
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local out = {}
for i, key in ipairs(KEYS) do
  local from, takes, before = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local begin = math.max(from, tonumber(redis.call('GET', key) or '0'))
  if begin < before then
    local over = math.min(begin + takes, before)
    -- A day: FAR_US.
    local ttl = math.min(math.max(math.ceil((over - now) / 1000), 1), 86400000)
    redis.call('SET', key, string.format('%.0f', over), 'PX', string.format('%.0f', ttl))
  end
  out[i] = begin
end
return cmsgpack.pack(out)
