-- What the fleet learns together. KEYS are the accounts, one hash each; ARGV[1] the report as msgpack:
--   {keep in slots, judge gap in us, {{known version, {destination, {slot, counts × 9}, …}, {scope, from, blob, …}}, …}}
-- and the answer {now, {{version, {learnt} or {}, {counts} or {}, taken}, …}}.
-- A hash holds `v` (the version), `j` (when last judged), `c:<destination>` (packed slots and counts, flat) and
-- `s:<scope>` (packed {generation, blob}); the scope of the account itself is empty.
local FIELDS = 9
local LIFE = 90 * 86400
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local keep, gap, accounts = unpack(cmsgpack.unpack(ARGV[1]))
local oldest = math.floor(now / 1000000) - keep

-- Slots and counts without what is too old; `more` added.
local function merge(flat, more)
  local out, at = {}, {}
  for _, list in ipairs({flat, more}) do
    for i = 1, #list, FIELDS + 1 do
      local slot = list[i]
      if slot >= oldest then
        local to = at[slot]
        if to then
          for k = 1, FIELDS do out[to + k] = out[to + k] + list[i + k] end
        else
          to = #out + 1
          at[slot] = to
          for k = 0, FIELDS do out[to + k] = list[i + k] end
        end
      end
    end
  end
  return out
end

local answer = {}
for n, key in ipairs(KEYS) do
  local known, counts, puts = unpack(accounts[n])
  for i = 1, #counts, 2 do
    local field = 'c:' .. counts[i]
    local before = redis.call('HGET', key, field)
    local all = merge(before and cmsgpack.unpack(before) or {}, counts[i + 1])
    if #all > 0 then redis.call('HSET', key, field, cmsgpack.pack(all)) else redis.call('HDEL', key, field) end
  end
  local version = tonumber(redis.call('HGET', key, 'v') or '0')
  local taken = {}
  for i = 1, #puts, 3 do
    local field = 's:' .. puts[i]
    local before = redis.call('HGET', key, field)
    local generation = before and cmsgpack.unpack(before)[1] or 0
    local ok = generation == puts[i + 1]
    if ok then
      redis.call('HSET', key, field, cmsgpack.pack({generation + 1, puts[i + 2]}))
      version = version + 1
      redis.call('HSET', key, 'v', string.format('%.0f', version))
    end
    taken[#taken + 1] = ok and 1 or 0
  end
  local turn = now >= tonumber(redis.call('HGET', key, 'j') or '0') + gap
  local learnt, all = nil, nil
  if turn or version ~= known then
    if version ~= known then learnt = {} end
    if turn then
      redis.call('HSET', key, 'j', string.format('%.0f', now))
      all = {}
    end
    local hash = redis.call('HGETALL', key)
    for i = 1, #hash, 2 do
      local kind, name = string.sub(hash[i], 1, 2), string.sub(hash[i], 3)
      if kind == 's:' and learnt then
        local s = cmsgpack.unpack(hash[i + 1])
        learnt[#learnt + 1] = {name, s[1], s[2]}
      elseif kind == 'c:' and all then
        local flat = cmsgpack.unpack(hash[i + 1])
        local kept = merge(flat, {})
        if #kept == 0 then
          redis.call('HDEL', key, hash[i])
        else
          if #kept < #flat then redis.call('HSET', key, hash[i], cmsgpack.pack(kept)) end
          all[#all + 1] = {name, kept}
        end
      end
    end
  end
  redis.call('EXPIRE', key, LIFE)
  answer[n] = {version, {learnt}, {all}, taken}
end
return cmsgpack.pack({now, answer})
