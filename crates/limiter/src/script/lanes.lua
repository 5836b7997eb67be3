-- ---- the buckets of this call --------------------------------------------------------------------------------------

-- By bucket: T burst reserve shared horizon, state, presence by class, dirty.
local n_buckets = #KEYS - 2
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
  local y, z, known, s, news, _ = specs[at + 2], specs[at + 3]
  present[b] = {}
  if kind < 2 then
    shared[b] = kind == 1
    s, known = load_rate(values[b + 2], x, y)
    T[b], burst[b], reserve[b], news = hear(b, s, x, y, z)
    dirty[b] = set_rate(s, T[b], burst[b])
  elseif kind == 2 then
    other[b] = QUOTA
    s, known = load_window(values[b + 2], x, y)
    _, burst[b], reserve[b], news = hear(b, s, 0, y, z)
    T[b] = floor((x + burst[b] - 1) / burst[b])
    windows[b] = Windows.open(s[MORE], Windows.width_of(x), burst[b], now)
    -- It may be told any moment.
    if Windows.is_lost(windows[b]) then windows[b].again = now + (now < epoch + RETURN and SOON or LATER) end
  else
    life[b], other[b] = x, CONCURRENCY
    s = stored(values[b + 2], 0, 0)
    known = s and true or false
    s = s or fresh(0, 0)
    _, burst[b], reserve[b], news = hear(b, s, 0, y, 0)
    T[b] = max(floor(2 * LEAD / burst[b]), 1)
    used[b], mine_at[b], dirty[b] = load_slots(s, x, held[b] or 0)
  end
  state[b] = s
  -- A bucket that nobody remembers is not written down for what was said of it, unless that is that it is closed.
  if news and (known or open[b]) then dirty[b] = true end
  horizon[b] = min(max(reserve[b] * T[b], 2 * GAP), HORIZON)
end

-- The past, told by somebody who kept it.
-- What is meant for another state than this one is not taken.
for i = 1, (knows == 0 or knows == epoch) and #request[6] or 0 do
  local b, told = request[6][i][1], request[6][i][2]
  if Windows.tell(windows[b], told) then dirty[b] = true end
end

-- What was granted without this limiter: a cost counts from now, slots of a window from when they were.
for i = 1, #request[10] do
  local b, cost = request[10][i][1], request[10][i][2]
  if windows[b] then
    if type(cost) == 'table' then Windows.plus(windows[b], cost) else Windows.charge(windows[b], now, cost) end
    dirty[b] = true
  elseif not used[b] then
    state[b][TAT] = max(state[b][TAT], now) + min(cost * T[b], MAX_DEBT)
    dirty[b] = true
  end
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
  if shared[lane[3][k]] then return KEYS[lane[3][1] + 2] end
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
  local opens = open[b]
  if opens and (not f or opens > f) then f = opens end
  return f and f > now and f or now
end

-- What a head costs at its lane's k-th bucket; `each` where costs differ.
local function cost_at(b, k, cost, each)
  if other[b] == CONCURRENCY then return 1 end
  return each and cost[k] or cost
end

local function waiting(b, class) return state[b][ACTIVE_AT + class] > now or present[b][class] end

-- ---- rule 1: who is here -----------------------------------------------------------------------------------------

-- In a lane, by position: 1 class .. 8 weight as asked, 9 ticket name, 10 its turns by bucket, 11 next run, 12 left of it.
for i = 1, #lanes do
  local lane = lanes[i]
  local class, buckets, cost = lane[1], lane[3], lane[4][1]
  lane[9], lane[10], lane[11], lane[12] = lane[6] .. ':' .. lane[7], {}, 1, lane[4][2]
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
      lane[10][k] = entry
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
      if lane[10][k] then lane[10][k][3] = true end
    end
  end
end

-- How far its turn moves on for what a lane is granted: weights count at the account.
local function step(lane, k, price)
  return k == 1 and floor(price * TURN / lane[8]) or price * TURN
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
  local mine = lane[10][k]
  if mine then
    local list, n = turns[b][class][3], 1
    for e = 1, #list do
      local entry = list[e]
      if entry ~= mine and (entry[3] or entry[2] > now) then
        n = n + 1
        if entry[1] < least_turn then least_turn = entry[1] end
      end
    end
    turn_limit = least_turn + floor(LEAD * TURN / (T[b] * n))
  end
  return blocked, least, limit, least_turn, turn_limit
end

