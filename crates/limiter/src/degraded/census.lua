-- Who is in the fleet, and which part of every limit is whose while it cannot see the others. As src/degraded/book.rs.
--
-- KEYS[1] a hash: 'w:' + worker -> "until forget share", 'g:' + who is gone -> "since share", '@since' -> when it began,
--         '@version' -> rises with changes, '@saw' -> when one before this was last seen, 'k:' + who knew one before
--         this -> 1 when it has said so itself, '@sure' -> 1 when one of them was not stale.
-- ARGV    'leave', worker
--         'beat', worker, life, away, expected or 0, late, since or 0, share it believes, version it knows, when it
--         last had an answer or 0, 1 if it may have been forgotten since, name, share, ...
--         Times in microseconds, shares in millionths. The names are who it knew of: told in case this state is new.
-- reply   msgpack {now, 1 if the beat came late and counts for nothing, since, version, live, lost share, share, saw, who
--         knew and has not said so, members, gone}
local WHOLE, DAYS, GONE = 1000000, 172800000, 90000000000
local key, what, me = KEYS[1], ARGV[1], 'w:' .. ARGV[2]
local floor, max, min = math.floor, math.max, math.min
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local function text(number) return string.format('%.0f', number) end

if what == 'leave' then
  redis.call('HDEL', key, 'g:' .. ARGV[2])
  if redis.call('HDEL', key, me) == 1 then redis.call('HINCRBY', key, '@version', 1) end
  return cmsgpack.pack({now, 0, 0, 0, 0, 0, 0, 0, 0, {}, {}})
end

local life, away, expected, late = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local knows, believes, version_known = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
if expected > 0 and now > expected + late then return cmsgpack.pack({now, 1, 0, 0, 0, 0, 0, 0, 0, {}, {}}) end

local members, since, version, changed, gone = {}, nil, 0, false, {}
local saw, knew, knew_any, sure = 0, {}, false, false
redis.call('HDEL', key, 'g:' .. ARGV[2])
local flat = redis.call('HGETALL', key)
for i = 1, #flat, 2 do
  local name, value = flat[i], flat[i + 1]
  if name == '@since' then since = tonumber(value)
  elseif name == '@version' then version = tonumber(value)
  elseif name == '@saw' then saw = tonumber(value)
  elseif name == '@sure' then sure = true
  elseif string.sub(name, 1, 2) == 'k:' then knew[name], knew_any = value == '1', true
  elseif string.sub(name, 1, 2) == 'g:' then
    local from, share = string.match(value, '^(%d+) (%d+)$')
    from, share = tonumber(from), tonumber(share)
    if from and from + GONE > now then gone[#gone + 1] = {from, share} else redis.call('HDEL', key, name) end
  else
    local till, forget, share = string.match(value, '^(%d+) (%d+) (%d+)$')
    till, forget, share = tonumber(till), tonumber(forget), tonumber(share)
    if forget and forget > now then members[name] = {till, forget, share}
    else
      redis.call('HDEL', key, name)
      changed = true
      if share and share > 0 and name ~= me then
        gone[#gone + 1] = {forget, share}
        redis.call('HSET', key, 'g:' .. string.sub(name, 3), text(forget) .. ' ' .. text(share))
      end
    end
  end
end
if not since then
  since = now
  redis.call('HSET', key, '@since', text(now))
end
local function write(name, entry)
  local before = members[name]
  changed = changed or not before or before[3] ~= entry[3]
  members[name] = entry
  redis.call('HSET', key, name, text(entry[1]) .. ' ' .. text(entry[2]) .. ' ' .. text(entry[3]))
end

-- Younger than what this worker knew: whoever else it knew may be sending by itself.
if knows > 0 and since > knows then
  saw = max(saw, min(tonumber(ARGV[10]), since))
  knew['k:' .. ARGV[2]], knew_any = true, true
  redis.call('HSET', key, '@saw', text(saw), 'k:' .. ARGV[2], 1)
  if ARGV[11] == '0' then
    sure = true
    redis.call('HSET', key, '@sure', 1)
  end
  for i = 12, #ARGV, 2 do
    local name, known = 'w:' .. ARGV[i], 'k:' .. ARGV[i]
    if knew[known] == nil then
      knew[known] = false
      redis.call('HSET', key, known, 0)
    end
    if name ~= me and not members[name] then write(name, {0, now + life + away, tonumber(ARGV[i + 1])}) end
  end
end

local live, lost, taken, untold = 1, 0, 0, 0
for name, entry in pairs(members) do
  if name ~= me then
    taken = taken + entry[3]
    if entry[1] > now then live = live + 1 else lost = lost + entry[3] end
  end
end
local share = min(floor(max(0, WHOLE - lost) / live), max(0, WHOLE - taken))
for _, said in pairs(knew) do if not said then untold = untold + 1 end end
-- Whoever goes by an older state has stopped after that time.
if knew_any and (untold > 0 or not sure) and now < since + life + away then
  lost, share = max(0, WHOLE - (taken - lost) - believes), believes
end
-- Until it has said that it knows of its new share, it may go by the one before.
write(me, {now + life, now + life + away, max(share, believes)})
if changed then version = redis.call('HINCRBY', key, '@version', 1) end
redis.call('PEXPIRE', key, DAYS)

local list = {}
-- Another state counts its versions anew.
if version ~= version_known or since ~= knows then
  for name, entry in pairs(members) do list[#list + 1] = {string.sub(name, 3), entry[3]} end
end
return cmsgpack.pack({now, 0, since, version, live, lost, share, saw, untold, list, gone})
