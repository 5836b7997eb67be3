-- The limiter's arithmetic inside Redis: one call of one worker, all or nothing for each head.
-- The same steps as src/rules, with the same integers; the numbers of the rules are those of its module docs.
--
-- These files are one script, in the order of redis.rs: windows, load, said, lanes, grant, finish.
--
-- KEYS[1] the epoch, KEYS[2] the newest generation among live workers (fleet.lua), KEYS[i + 2] bucket i.
-- ARGV[1] msgpack {buckets, lanes, worker, held, epoch it knows or 0, seeds, 1 if the seeds are all there is,
--          generation or 0, changes, charges}
--   buckets  flat, four numbers each:
--              rate    T, burst, reserve, 0, or 1 where accounts share it
--              window  length, limit, reserve, 2
--              slots   life, limit, 0, 3
--   lanes    {class 0..3, destination, {bucket from 1, account first}, {cost, count, ...}, since or 0, id, seq, weight}
--            a cost is a number, or {number, ...} by bucket where they differ
--   held     {bucket, calls, ...}: what the worker has under way, of every bucket of slots that is asked about
--   seeds    {bucket, {slot, cost, ...}, ...}: what was granted before the state was lost; with an epoch, meant for that
--            state alone
--   changes  {bucket, since or 0, closed until or 0, ...}
--   charges  {{bucket, cost or {slot, cost, ...}}, ...}: what a worker granted itself that could not ask
-- ARGV[2] the time, for replaying a trace; without it, the server's
-- reply    msgpack {now, epoch, 1 if its past is lost, {{{date - now, ...}, retry - now, bucket, why} a lane}}
--          why 0 nothing denied, 1 date, 2 turn, 3 ticket, 4 gap, 5 quota, 6 concurrency, 7 closed

local HORIZON, OUT_OF_TURN, LEAD, ACTIVE, PATIENCE = 100000, 20000, 50000, 250000, 100000
local GAP, SLACK, KEEP, FORGET, MAX_DEBT = 20000, 2000, 10000000, 1000000, 2000000000000000
local MARK_STEP = 5 * GAP
local REST, POLL, STAND, TURN = 60000000, 40000, 180000000, 1000
local RETURN, SOON, LATER = 15000000, 1000000, 15000000
local WEIGHT = {3, 8, 24}
local DATE, IN_TURN, TICKET, GAPPED, QUOTA, CONCURRENCY, CLOSED = 1, 2, 3, 4, 5, 6, 7
local HUGE = math.huge
local floor, max, min, ceil = math.floor, math.max, math.min, math.ceil

-- A bucket's value: a flat array. [ACTIVE_AT + class] for class 0..3, [TAG_AT + class] for class 1..3.
-- INTERVAL tells the kinds apart: above 0 a rate's, below 0 a window's length, 0 slots.
-- MORE   rate    turns by class {v, name, tag, until, name, ...}: of destinations at an account, of accounts at a
--                bucket they share, absent elsewhere
--        window  see windows.lua
--        slots   {worker, calls, until, ...}
-- From GEN on: what it was told of itself, see said.lua. LAST: the latest date granted at a rate, where that is ahead.
-- BURST: that of a rate, as TAT was computed with; 0 where an earlier version wrote.
local INTERVAL, TAT, EXPIRES, TAG_AT, V, ACTIVE_AT = 1, 2, 3, 3, 7, 8
local T_UNTIL, T_RANK, T_HOLDER, MORE = 12, 13, 14, 15
local GEN, SINCE, SAID, SHUT_SINCE, SHUT_UNTIL, LAPSES, LAST, BURST = 16, 17, 17, 21, 22, 23, 24, 25

local request = cmsgpack.unpack(ARGV[1])
local specs, lanes, worker = request[1], request[2], request[3]
local now
if ARGV[2] then
  now = tonumber(ARGV[2])
else
  local t = redis.call('TIME')
  now = tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- ---- load ------------------------------------------------------------------------------------------------------

-- Slices, because a Lua call takes no more than some 8,000 arguments.
local values = {}
for from = 1, #KEYS, 4000 do
  local to = min(from + 3999, #KEYS)
  local part = redis.call('MGET', unpack(KEYS, from, to))
  for i = 1, to - from + 1 do values[from + i - 1] = part[i] end
end

-- The epoch: when this state began. What followed says what is known of the time before it: nothing went before; it is
-- lost ('!'), as a worker knows who has seen an older state; or it was lost and has been told again ('.').
local epoch, past
if values[1] then
  epoch, past = string.match(values[1], '^(%d+)([!.]?)$')
  epoch = tonumber(epoch)
end
local before, was = epoch, past
local knows = request[5]
if not epoch then epoch, past = now, knows > 0 and '!' or ''
elseif past == '' and knows > 0 and knows < epoch then past = '!' end
if epoch > now then epoch = now end
if request[7] == 1 then past = '.' end
if epoch ~= before or past ~= was then redis.call('SET', KEYS[1], string.format('%.0f%s', epoch, past)) end

-- Time left until full, at another interval; see rescale() in rules/state.rs.
local function rescale(left, old, new)
  local scale = 1
  while max(old, new) > 67108864 * scale do scale = scale * 2 end
  local whole = floor(left / old)
  local rest = left - whole * old
  local part = 0
  if rest > 0 then
    if old < scale then part = new
    else part = min(new, ceil(ceil(rest / scale) * ceil(new / scale) / floor(old / scale)) * scale) end
  end
  return min(whole * new + part, MAX_DEBT)
end

local function fresh(interval, tat, burst)
  return {interval, tat, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', false, 0, 0, 0, 0, 0, 0, 0, 0, 0, burst or 0}
end

-- What is stored where its first number is within those two; nil where nothing is, false where it is not ours.
local function stored(raw, low, high)
  if not raw then return nil end
  local ok, s = pcall(cmsgpack.unpack, raw)
  if not ok or type(s) ~= 'table' or #s < T_HOLDER or s[INTERVAL] < low or s[INTERVAL] > high then return false end
  if s[EXPIRES] <= now then return nil end
  -- An earlier version kept less.
  if not s[BURST] then
    s[MORE] = s[MORE] or false
    for at = GEN, BURST do s[at] = s[at] or 0 end
  end
  return s
end

-- These two return the state, and whether it was there.
local function load_rate(raw, interval, burst)
  local s = stored(raw, 1, HUGE)
  if s then return s, true end
  -- Not ours: take the bucket for empty. Nothing there: empty when the state began.
  return fresh(interval, (s == false and now or epoch) + burst * interval, burst), false
end

-- Another rate or burst: the tokens stay, but for those that a smaller burst has no room for; see set_rate() in
-- rules/state.rs. Whether it is another.
local function set_rate(s, interval, burst)
  local was = s[BURST] > 0 and s[BURST] or burst
  if s[INTERVAL] == interval and s[BURST] == burst then return false end
  local from = (interval < s[INTERVAL] or burst < was) and max(now, s[LAST]) or now
  local lacking = max(s[TAT] - from, 0)
  local no_room, new_room = max(was - burst, 0) * s[INTERVAL], max(burst - was, 0) * interval
  local left = rescale(max(lacking - no_room, 0), s[INTERVAL], interval) + new_room
  if burst < was and from > now then left = max(left, burst * interval) end
  if lacking > 0 or left > 0 then s[TAT] = from + min(left, MAX_DEBT) end
  s[INTERVAL], s[BURST] = interval, burst
  return true
end

local function load_window(raw, length, limit)
  local s = stored(raw, -length, -length)
  if s and past ~= '!' then Windows.found(s[MORE]) end
  local known = s and true or false
  if not s then
    local width, spent, origin = Windows.width_of(length), 0, FOUND
    -- Not ours: all of it may have been spent just now. The past is lost: or before the state began.
    if s == false then spent = limit
    elseif past == '!' and epoch + length > now then origin = floor(epoch / width) end
    s = fresh(-length, 0)
    s[MORE] = Windows.stored(width, now, spent, origin)
  end
  return s, known
end

-- ---- slots -------------------------------------------------------------------------------------------------------

-- Drops what has run out and takes this worker's own count as it says; returns the calls under way, this worker's
-- position in the list, and whether that is news.
local function load_slots(s, life, calls)
  local list, kept, used, mine, news = s[MORE] or {}, {}, calls, nil, false
  for at = 1, #list, 3 do
    local name, n, till = list[at], list[at + 1], list[at + 2]
    if name == worker then
      mine = #kept + 1
      if n ~= calls or (n > 0 and till < now + floor(life / 2)) then n, till, news = calls, now + life, true end
      kept[mine], kept[mine + 1], kept[mine + 2] = name, n, till
    elseif till > now then
      local to = #kept
      kept[to + 1], kept[to + 2], kept[to + 3] = name, n, till
      used = used + n
    end
  end
  if not mine then
    mine = #kept + 1
    news = calls > 0
    kept[mine], kept[mine + 1], kept[mine + 2] = worker, calls, now + life
  end
  s[MORE] = kept
  return used, mine, news
end

