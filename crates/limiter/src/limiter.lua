-- The limiter's arithmetic inside Redis: one call of one worker, all or nothing for each head.
-- The same steps as src/rules, with the same integers; the numbers of the rules are those of its module docs.
--
-- KEYS[1] the epoch, KEYS[i + 1] bucket i.
-- ARGV[1] msgpack {buckets, lanes, worker, held, epoch it knows or 0, seeds, 1 if the seeds are all there is}
--   buckets  flat, four numbers each:
--              rate    T, burst, reserve, 0, or 1 where accounts share it
--              window  length, limit, reserve, 2
--              slots   life, limit, 0, 3
--   lanes    {class 0..3, destination, {bucket from 1, account first}, {cost, count, ...}, since or 0, id, seq}
--            a cost is a number, or {number, ...} by bucket where they differ
--   held     {bucket, calls, ...}: what the worker has under way, of every bucket of slots that is asked about
--   seeds    {bucket, {slot, cost, ...}, ...}: what was granted before the state was lost
-- ARGV[2] the time, for replaying a trace; without it, the server's
-- reply    msgpack {now, epoch, 1 if its past is lost, {{{date - now, ...}, retry - now, bucket, why} a lane}}
--          why 0 nothing denied, 1 date, 2 turn, 3 ticket, 4 gap, 5 quota, 6 concurrency

local HORIZON, OUT_OF_TURN, LEAD, ACTIVE, PATIENCE = 100000, 20000, 50000, 250000, 100000
local GAP, SLACK, KEEP, FORGET, MAX_DEBT = 20000, 2000, 10000000, 1000000, 2000000000000000
local MARK_STEP = 5 * GAP
local REST, POLL = 60000000, 40000
local WEIGHT = {3, 8, 24}
local DATE, TURN, TICKET, GAPPED, QUOTA, CONCURRENCY = 1, 2, 3, 4, 5, 6
local HUGE = math.huge
local floor, max, min, ceil = math.floor, math.max, math.min, math.ceil

-- A bucket's value: a flat array. [ACTIVE_AT + class] for class 0..3, [TAG_AT + class] for class 1..3.
-- INTERVAL tells the kinds apart: above 0 a rate's, below 0 a window's length, 0 slots.
-- MORE   rate    turns by class {v, name, tag, until, name, ...}: of destinations at an account, of accounts at a
--                bucket they share, absent elsewhere
--        window  see windows.lua
--        slots   {worker, calls, until, ...}
local INTERVAL, TAT, EXPIRES, TAG_AT, V, ACTIVE_AT = 1, 2, 3, 3, 7, 8
local T_UNTIL, T_RANK, T_HOLDER, MORE = 12, 13, 14, 15

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

local function fresh(interval, tat) return {interval, tat, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ''} end

-- What is stored where its first number is within those two; nil where nothing is, false where it is not ours.
local function stored(raw, low, high)
  if not raw then return nil end
  local ok, s = pcall(cmsgpack.unpack, raw)
  if not ok or type(s) ~= 'table' or #s < T_HOLDER or s[INTERVAL] < low or s[INTERVAL] > high then return false end
  if s[EXPIRES] > now then return s end
end

local function load_rate(raw, interval, burst)
  local s = stored(raw, 1, HUGE)
  if not s then
    -- Not ours: take the bucket for empty. Nothing there: empty when the state began.
    return fresh(interval, (s == false and now or epoch) + burst * interval)
  end
  if s[INTERVAL] ~= interval then
    if s[TAT] > now then s[TAT] = now + rescale(s[TAT] - now, s[INTERVAL], interval) end
    s[INTERVAL] = interval
  end
  return s
end

local function load_window(raw, length, limit)
  local s = stored(raw, -length, -length)
  -- What stood for an unknown past is void once the past is known.
  if s and Windows.origin_of(s[MORE]) == UNKNOWN and past ~= '!' then s = nil end
  if not s then
    local width, at, spent, origin = Windows.width_of(length), now, 0, FOUND
    -- Not ours: all of it may have been spent just now. The past is lost: or when the state began.
    if s == false then spent = limit
    elseif past == '!' and epoch + length > now then at, spent, origin = epoch, limit, UNKNOWN end
    s = fresh(-length, 0)
    s[MORE] = Windows.stored(width, at, spent, origin)
  end
  return s
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

-- ---- the buckets of this call --------------------------------------------------------------------------------------

-- By bucket: T burst reserve shared horizon, state, presence by class, dirty.
local n_buckets = #KEYS - 1
local T, burst, reserve, shared, horizon, state, present, dirty = {}, {}, {}, {}, {}, {}, {}, {}
-- What denies at buckets that are no rates. Windows: see windows.lua. Slots: calls under way, this worker's place in
-- MORE, life of a lease.
local other, windows, used, mine_at, life = {}, {}, {}, {}, {}
-- Where turns are taken, by bucket and class: {v, name -> {tag, until, present, name}, list of the same}
local turns = {}

local held = {}
for at = 1, #request[4], 2 do held[request[4][at]] = request[4][at + 1] end

for b = 1, n_buckets do
  local at = 4 * (b - 1)
  local x, kind = specs[at + 1], specs[at + 4]
  burst[b], reserve[b], present[b] = specs[at + 2], specs[at + 3], {}
  if kind < 2 then
    T[b], shared[b] = x, kind == 1
    state[b] = load_rate(values[b + 1], x, burst[b])
  elseif kind == 2 then
    T[b], other[b] = floor((x + burst[b] - 1) / burst[b]), QUOTA
    state[b] = load_window(values[b + 1], x, burst[b])
    windows[b] = Windows.open(state[b][MORE], Windows.width_of(x), burst[b], now)
  else
    T[b], life[b], other[b] = max(floor(2 * LEAD / burst[b]), 1), x, CONCURRENCY
    state[b] = stored(values[b + 1], 0, 0) or fresh(0, 0)
    used[b], mine_at[b], dirty[b] = load_slots(state[b], x, held[b] or 0)
  end
  horizon[b] = min(max(reserve[b] * T[b], 2 * GAP), HORIZON)
end

-- The past, told by somebody who kept it.
for i = 1, #request[6] do
  local b, told = request[6][i][1], request[6][i][2]
  if Windows.tell(windows[b], told) then dirty[b] = true end
end

local function load_turns(known)
  local by_class = {}
  for class = 0, 3 do
    local s = known and known[class + 1]
    local named, list = {}, {}
    if s then
      for at = 2, #s, 3 do
        local entry = {s[at + 1], s[at + 2], false, s[at]}
        named[s[at]], list[#list + 1] = entry, entry
      end
    end
    by_class[class] = {s and s[1] or 0, named, list}
  end
  return by_class
end

-- Whose turn it is at a lane's k-th bucket, or nothing where no turns are taken.
local function turn_name(lane, k)
  if k == 1 then return lane[2] end
  if shared[lane[3][k]] then return KEYS[lane[3][1] + 1] end
end

for i = 1, #lanes do
  local lane = lanes[i]
  for k = 1, #lane[3] do
    local b = lane[3][k]
    if not turns[b] and turn_name(lane, k) then turns[b] = load_turns(state[b][MORE]) end
  end
end

local function horizon_of(b, class) return class == 0 and HORIZON or horizon[b] end

-- Rates: what to add to the state's time. Windows: what must fit. Slots: nothing of use.
local function offset_of(b, class, cost)
  local need, most = class == 0 and cost or cost + reserve[b], burst[b]
  if need > most then need = most end
  if not other[b] then return (need - most) * T[b] end
  return max(need, cost)
end

-- When the bucket can give; offset as above. A date beyond every horizon where all slots are taken.
local function date_at(b, offset)
  local f
  if not other[b] then f = state[b][TAT] + offset
  elseif windows[b] then f = Windows.date(windows[b], offset, now)
  elseif used[b] >= burst[b] then f = now + HORIZON + 1 end
  return f and f > now and f or now
end

-- What a head costs at its lane's k-th bucket; `each` where costs differ.
local function cost_at(b, k, cost, each)
  if other[b] == CONCURRENCY then return 1 end
  return each and cost[k] or cost
end

local function waiting(b, class) return state[b][ACTIVE_AT + class] > now or present[b][class] end

-- ---- rule 1: who is here -----------------------------------------------------------------------------------------

-- In a lane, by position: 1 class .. 7 seq as asked, 8 ticket name, 9 its turns by bucket, 10 next run, 11 left of the run.
for i = 1, #lanes do
  local lane = lanes[i]
  local class, buckets, cost = lane[1], lane[3], lane[4][1]
  lane[8], lane[9], lane[10], lane[11] = lane[6] .. ':' .. lane[7], {}, 1, lane[4][2]
  local far, far_at, each = 0, 0, type(cost) == 'table'
  for k = 1, #buckets do
    local b = buckets[k]
    local s = state[b]
    if class > 0 and not waiting(b, class) then s[TAG_AT + class] = max(s[TAG_AT + class], s[V]) end
    local name = turn_name(lane, k)
    if name then
      local entries = turns[b][class]
      local entry = entries[2][name]
      if not entry then
        entry = {entries[1], 0, false, name}
        entries[2][name] = entry
        entries[3][#entries[3] + 1] = entry
      elseif entry[2] <= now and not entry[3] then
        entry[1] = max(entry[1], entries[1])
      end
      lane[9][k] = entry
    end
    if date_at(b, offset_of(b, class, cost_at(b, k, cost, each))) > now + horizon_of(b, class) then
      far, far_at = far + 1, b
    end
  end
  for k = 1, #buckets do
    local b = buckets[k]
    -- At slots only those denied wait: others may be here without being in need of one.
    if (far == 0 or (far == 1 and far_at == b)) and other[b] ~= CONCURRENCY then
      present[b][class] = true
      if lane[9][k] then lane[9][k][3] = true end
    end
  end
end

-- ---- rule 3: what others allow a lane at its k-th bucket -----------------------------------------------------------
-- returns blocked, least tag of other classes, limit of mine, least tag of others who take turns, limit of mine

local function limits(lane, k)
  local b, class = lane[3][k], lane[1]
  local s = state[b]
  local blocked, least, limit, least_turn, turn_limit = false, HUGE, HUGE, HUGE, HUGE
  if class > 0 then
    blocked = waiting(b, 0)
    for other = 1, 3 do
      if other ~= class and s[TAG_AT + other] < least and waiting(b, other) then least = s[TAG_AT + other] end
    end
    limit = least + floor(2 * LEAD / T[b])
  end
  local mine = lane[9][k]
  if mine then
    local list, n = turns[b][class][3], 1
    for e = 1, #list do
      local entry = list[e]
      if entry ~= mine and (entry[3] or entry[2] > now) then
        n = n + 1
        if entry[1] < least_turn then least_turn = entry[1] end
      end
    end
    turn_limit = least_turn + floor(LEAD / (T[b] * n))
  end
  return blocked, least, limit, least_turn, turn_limit
end

-- ---- rules 4 and 5: grant a lane's heads while they may go ----------------------------------------------------------
-- What others do is constant during a visit, so it is looked up once; the inner loop only adds and compares.

local out = {}
for i = 1, #lanes do out[i] = {{}, 0, 0, 0} end

-- By k, anew at each visit.
local scratch = {}
for i = 1, 15 do scratch[i] = {} end

local function visit(lane, answer, in_turn_only, only_one)
  local far_of, tick, blocked, least, limit, contest, tat, tag, charge, offset, price, other_price,
    least_turn, turn_limit, turn_tag = unpack(scratch, 1, 15)
  local class, buckets, runs, mine = lane[1], lane[3], lane[4], lane[9]
  local n = #buckets
  local rank = class == 0 and 0 or 1
  local weight = WEIGHT[class]
  for k = 1, n do
    local b = buckets[k]
    local s = state[b]
    blocked[k], least[k], limit[k], least_turn[k], turn_limit[k] = limits(lane, k)
    turn_tag[k] = mine[k] and mine[k][1] or 0
    tick[k] = s[T_UNTIL] > now and s[T_RANK] <= rank and s[T_HOLDER] ~= lane[8]
    far_of[k] = now + horizon_of(b, class)
    -- Windows and slots have none: date_at() speaks for them.
    tat[k] = not other[b] and s[TAT]
    contest[k] = blocked[k] or least[k] < HUGE or least_turn[k] < HUGE
    tag[k] = class > 0 and s[TAG_AT + class] or 0
  end
  local dates = answer[1]
  local granted, known_cost, last_price = 0, nil, nil
  local d, from, why, bind, retry, latest
  while true do
    local cost = runs[lane[10]]
    if not cost then why = nil; break end
    if cost ~= known_cost then
      -- The prices of the last grant are needed in the end.
      known_cost, price, other_price = cost, other_price, price
      local each = type(cost) == 'table'
      for k = 1, n do
        local b = buckets[k]
        local c = cost_at(b, k, cost, each)
        price[k], offset[k], charge[k] = c, offset_of(b, class, c), c * T[b]
        if charge[k] > MAX_DEBT then charge[k] = MAX_DEBT end
      end
    end

    d, from, why, latest = now, 1, nil, 0
    local account_date = now
    for k = 1, n do
      local f = tat[k]
      if f then
        f = f + offset[k]
        if f < now then f = now end
      else
        f = date_at(buckets[k], offset[k])
      end
      if f > d then d, from = f, k end
      if k == 1 then account_date = f end
      if tick[k] then
        if latest == 0 then
          local free = windows[buckets[k]] and state[buckets[k]][T_UNTIL] - ACTIVE or f - HORIZON
          bind, retry, why = k, max(now + 2 * GAP, free), TICKET
        end
      elseif f > far_of[k] then
        if f > latest then
          local b = buckets[k]
          local ahead = class == 0 and HORIZON or floor(horizon[b] / 2)
          latest, bind, retry, why = f, k, max(now + GAP, f - ahead), other[b] or DATE
          if why == CONCURRENCY then retry = now + (class == 0 and GAP or POLL) end
        end
      elseif contest[k] and latest == 0 and why ~= TICKET
        and (in_turn_only or f > now + OUT_OF_TURN or other[buckets[k]] == CONCURRENCY)
        and (blocked[k] or tag[k] > limit[k] or turn_tag[k] > turn_limit[k]) then
        bind, retry, why = k, max(now + GAP, f - OUT_OF_TURN), TURN
      end
    end
    -- Where other accounts wait too, the date will not come any nearer by waiting.
    if not why and d > now and not (from > 1 and shared[buckets[from]] and least_turn[from] < HUGE) then
      for k = 1, n do
        local b = buckets[k]
        if k == 1 or shared[b] then
          -- What the bucket could give at once counts: a slow destination must not eat its burst, date by date.
          local base = max(tat[k] + offset[k], now)
          if k > 1 and account_date > base then base = account_date end
          local slack = max(floor((burst[b] - 1) * T[b] / 8), SLACK)
          if d - base > slack then
            bind, retry, why = from, max(now + GAP, d - slack), GAPPED
            break
          end
        end
      end
    end
    if why then break end

    for k = 1, n do
      local t = tat[k]
      if t then
        if d > t then t = d end
        tat[k] = t + charge[k]
      else
        local b = buckets[k]
        if windows[b] then
          Windows.charge(windows[b], d, price[k])
        else
          local list, at = state[b][MORE], mine_at[b]
          used[b], list[at + 1], list[at + 2] = used[b] + 1, list[at + 1] + 1, now + life[b]
        end
      end
      if weight then tag[k] = tag[k] + price[k] * weight end
      turn_tag[k] = turn_tag[k] + price[k]
    end
    last_price = price
    granted = granted + 1
    dates[#dates + 1] = d - now
    lane[11] = lane[11] - 1
    if lane[11] == 0 then
      lane[10] = lane[10] + 2
      lane[11] = runs[lane[10] + 1]
    end
    if only_one then break end
  end

  if granted > 0 then
    for k = 1, n do
      local b = buckets[k]
      local s = state[b]
      dirty[b] = true
      if tat[k] then s[TAT] = tat[k] end
      if weight then
        -- Tags only grow, so the last grant's is the largest that the bucket's clock may take.
        s[V] = max(s[V], min(tag[k] - last_price[k] * weight, least[k]))
        s[TAG_AT + class] = tag[k]
      end
      if mine[k] then
        local entries = turns[b][class]
        entries[1] = max(entries[1], min(turn_tag[k] - last_price[k], least_turn[k]))
        mine[k][1] = turn_tag[k]
      end
      -- Nobody else may go while critical mail waits for a slot: not for longer than it does.
      if class == 0 and other[b] == CONCURRENCY then s[ACTIVE_AT] = 0 end
      if s[T_HOLDER] == lane[8] then s[T_UNTIL], s[T_RANK], s[T_HOLDER] = 0, 0, '' end
    end
    lane[5], lane[7] = 0, lane[7] + granted
    lane[8] = lane[6] .. ':' .. lane[7]
  end
  if why then
    answer[2], answer[3], answer[4] = retry, buckets[bind], why
  else
    answer[2], answer[3], answer[4] = 0, 0, 0
  end
  return granted > 0
end

-- ---- rules 2 and 6: order, sweeps ------------------------------------------------------------------------------------

local order, class_key, turn_key = {}, {}, {}
for i = 1, #lanes do
  local lane = lanes[i]
  order[i] = i
  class_key[i] = lane[1] == 0 and -1 or state[lane[3][1]][TAG_AT + lane[1]]
  turn_key[i] = lane[9][1][1]
end
table.sort(order, function(a, b)
  if class_key[a] ~= class_key[b] then return class_key[a] < class_key[b] end
  if turn_key[a] ~= turn_key[b] then return turn_key[a] < turn_key[b] end
  return a < b
end)

-- Phase 1 serves in turn only; when a sweep grants nothing, phase 2 gives away what would go to waste, one a lane.
local done, in_turn_only = {}, true
while true do
  local any = false
  for at = 1, #order do
    local i = order[at]
    if not done[i] then
      local lane, answer = lanes[i], out[i]
      if visit(lane, answer, in_turn_only, not in_turn_only) then any = true end
      done[i] = answer[4] == DATE or answer[4] >= QUOTA or (answer[4] == 0 and not lane[4][lane[10]])
    end
  end
  if any then in_turn_only = true
  elseif in_turn_only then in_turn_only = false
  else break end
end

-- ---- rule 7: what those left waiting leave behind -----------------------------------------------------------------------

for i = 1, #lanes do
  local lane, answer = lanes[i], out[i]
  local cost = lane[4][lane[10]]
  if cost then
    local class, b, why = lane[1], answer[3], answer[4]
    local rank = class == 0 and 0 or 1
    local s = state[b]
    local till, step = max(now, answer[2]) + ACTIVE, MARK_STEP
    -- A lane that rests asks again within a minute; calls end any moment.
    if other[b] == QUOTA then till = min(till, now + REST + ACTIVE)
    elseif other[b] then till, step = now + 2 * POLL, GAP end
    if till > s[ACTIVE_AT + class] + step then
      s[ACTIVE_AT + class] = till
      dirty[b] = true
    end
    for k = 1, #lane[3] do
      local turn = lane[9][k]
      if lane[3][k] == b and turn and till > turn[2] + MARK_STEP then
        turn[2] = till
        dirty[b] = true
      end
    end
    if rank == 0 or (lane[5] > 0 and now - lane[5] >= PATIENCE) then
      for k = 1, #lane[3] do
        local q = lane[3][k]
        local t = state[q]
        local take = t[T_HOLDER] == lane[8]
        if take then
          take = why ~= TICKET
        elseif q == b and (t[T_UNTIL] <= now or t[T_RANK] > rank) then
          local price = cost_at(q, k, cost, type(cost) == 'table')
          local most = min(price, burst[q] - reserve[q])
          -- What a window never gives is not waited for.
          take = (why == DATE or why == QUOTA and price <= burst[q]) and price > 1 and (most - 1) * T[q] > horizon_of(q, class) - OUT_OF_TURN
          if take then
            local blocked, _, limit, _, turn_limit = limits(lane, k)
            local tag = class > 0 and t[TAG_AT + class] or 0
            take = not blocked and tag <= limit and (lane[9][k] and lane[9][k][1] or 0) <= turn_limit
          end
        end
        if take then
          t[T_UNTIL], t[T_RANK], t[T_HOLDER] = till, rank, lane[8]
          dirty[q] = true
        end
      end
    end
  end
end

-- ---- save what changed ----------------------------------------------------------------------------------------------------

for b = 1, n_buckets do
  if dirty[b] then
    local s = state[b]
    if turns[b] then
      local stored = {}
      for class = 0, 3 do
        local v, list = turns[b][class][1], turns[b][class][3]
        local flat, at = {v}, 1
        for e = 1, #list do
          local entry = list[e]
          if entry[2] + FORGET >= now or entry[1] > v then
            flat[at + 1], flat[at + 2], flat[at + 3] = entry[4], entry[1], entry[2]
            at = at + 3
          end
        end
        stored[class + 1] = flat
      end
      s[MORE] = stored
    end
    local left = max(s[TAT] - now, 0)
    if windows[b] then
      s[MORE], left = windows[b].list, Windows.life(windows[b].width)
    elseif used[b] then
      local list, some = s[MORE], {}
      for at = 1, #list, 3 do
        if list[at + 1] > 0 then
          local to = #some
          some[to + 1], some[to + 2], some[to + 3] = list[at], list[at + 1], list[at + 2]
          left = max(left, list[at + 2] - now)
        end
      end
      s[MORE] = some
    end
    s[EXPIRES] = now + left + KEEP
    -- The server forgets a little later than the arithmetic does.
    redis.call('SET', KEYS[b + 1], cmsgpack.pack(s), 'PX', string.format('%.0f', floor((left + KEEP) / 1000) + 1000))
  end
end

for i = 1, #lanes do
  local answer = out[i]
  if answer[4] ~= 0 then answer[2] = answer[2] - now end
end
return cmsgpack.pack({now, epoch, past == '!' and 1 or 0, out})
