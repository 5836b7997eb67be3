-- Quota windows: never more than `limit` in any span of the length, counted on dates. As src/rules/window.rs.
--
-- Time goes in slots of a 200th of the length, counted from 1970. In a span of the length that ends in slot s lie slots
-- s - SPANS to s, so whatever was granted after slot s - SPANS - 1 counts, the oldest slot whole.
--
-- Stored as {CUR, TOTAL, BASE, ORIGIN, PAST, slot, cost, slot, cost ...}. ORIGIN is FOUND, TOLD, or the slot before whose
-- end is lost what was granted: the window is closed until that is too old to count. TOTAL is the sum of all grants since the window
-- was last empty, BASE that up to the newest slot too old to count. PAST holds, packed, {slot, sum at its end} of the
-- slots before CUR; what is dated in CUR and later follows slot by slot.

local FOUND, TOLD = 0, 1

local Windows = (function()
  local SPANS = 200
  local CUR, TOTAL, BASE, ORIGIN, PAST = 1, 2, 3, 4, 5
  local ENTRY, ENTRY_BYTES = '<I6I6', 12
  local LOST = 1000000000000
  local floor, max, min = math.floor, math.max, math.min
  local pack, unpack_at = struct.pack, struct.unpack

  local function width_of(length) return floor((length + SPANS - 1) / SPANS) end

  -- What a window stores of which `spent` was granted at `at`.
  local function stored(width, at, spent, origin)
    local cur = floor(at / width)
    if spent == 0 then return {cur, 0, 0, origin, ''} end
    return {cur, spent, 0, origin, '', cur, spent}
  end

  -- Moves on to `now`: what is over goes to the past, what is too old is forgotten.
  local function open(list, width, limit, now)
    local window = {list = list, width = width, limit = limit}
    local cur = floor(now / width)
    if list[ORIGIN] > TOLD and cur > list[ORIGIN] + SPANS then list[ORIGIN] = FOUND end
    if cur <= list[CUR] then return window end
    local sum, last = list[TOTAL], #list
    for at = PAST + 2, last, 2 do sum = sum - list[at] end
    local over, kept = {list[PAST]}, PAST
    for at = PAST + 1, last, 2 do
      local slot, cost = list[at], list[at + 1]
      list[at], list[at + 1] = nil, nil
      if slot < cur then
        sum = sum + cost
        over[#over + 1] = pack(ENTRY, slot, sum)
      else
        list[kept + 1], list[kept + 2] = slot, cost
        kept = kept + 2
      end
    end
    local past, from = table.concat(over), 1
    while from < #past do
      local slot, upto = unpack_at(ENTRY, past, from)
      if slot >= cur - SPANS then break end
      list[BASE], from = upto, from + ENTRY_BYTES
    end
    list[CUR], list[PAST] = cur, string.sub(past, from)
    if list[BASE] == list[TOTAL] then list[TOTAL], list[BASE] = 0, 0 end
    return window
  end

  -- From when on `need` fits; past every horizon where it never does.
  local function date(window, need, now)
    local list, width = window.list, window.width
    local want = list[TOTAL] + need - window.limit
    if list[ORIGIN] > TOLD then now = max(now, (list[ORIGIN] + SPANS + 1) * width) end
    if want <= list[BASE] then return now end
    if want > list[TOTAL] then return now + (SPANS + 1) * width end
    local past = list[PAST]
    local low, high = 0, #past / ENTRY_BYTES
    local n = high
    while low < high do
      local mid = floor((low + high) / 2)
      local _, upto = unpack_at(ENTRY, past, mid * ENTRY_BYTES + 1)
      if upto < want then low = mid + 1 else high = mid end
    end
    local slot
    if low < n then
      slot = unpack_at(ENTRY, past, low * ENTRY_BYTES + 1)
    else
      local sum = list[TOTAL]
      for at = #list - 1, PAST + 1, -2 do
        slot, sum = list[at], sum - list[at + 1]
        if sum < want then break end
      end
    end
    return max(now, (slot + SPANS + 1) * width)
  end

  local function charge(window, at_date, cost)
    local list = window.list
    local slot, at = max(floor(at_date / window.width), list[CUR]), #list - 1
    list[TOTAL] = list[TOTAL] + cost
    while at > PAST and list[at] > slot do at = at - 2 end
    if at > PAST and list[at] == slot then
      list[at + 1] = list[at + 1] + cost
    else
      table.insert(list, at + 2, slot)
      table.insert(list, at + 3, cost)
    end
  end

  -- Takes what somebody else granted, {slot, cost, ...}, beside what is known already.
  local function plus(window, more)
    local list = window.list
    local cur, costs, order = list[CUR], {}, {}
    local function add(slot, cost)
      if slot >= cur - SPANS then
        if not costs[slot] then costs[slot], order[#order + 1] = 0, slot end
        costs[slot] = costs[slot] + cost
      end
    end
    local before = list[BASE]
    for from = 1, #list[PAST], ENTRY_BYTES do
      local slot, upto = unpack_at(ENTRY, list[PAST], from)
      add(slot, upto - before)
      before = upto
    end
    for at = PAST + 1, #list, 2 do add(list[at], list[at + 1]) end
    for at = 1, #more, 2 do add(min(more[at], cur), more[at + 1]) end
    table.sort(order)
    local new, over, sum = {cur, 0, 0, list[ORIGIN], ''}, {}, 0
    for at = 1, #order do
      local slot = order[at]
      sum = sum + costs[slot]
      if slot < cur then over[#over + 1] = pack(ENTRY, slot, sum)
      else new[#new + 1], new[#new + 2] = slot, costs[slot] end
    end
    new[TOTAL], new[PAST] = sum, table.concat(over)
    window.list = new
  end

  -- The same of its own past, as told, once. Returns whether it did.
  local function tell(window, told)
    if window.list[ORIGIN] == TOLD then return false end
    plus(window, told)
    window.list[ORIGIN] = TOLD
    return true
  end

  -- What is stored, as {slot, cost, ...}; what is lost counts for more than any limit.
  local function each(list)
    local out, sum = {}, list[BASE]
    if list[ORIGIN] > TOLD then out = {list[ORIGIN], LOST} end
    for from = 1, #list[PAST], ENTRY_BYTES do
      local slot, upto = unpack_at(ENTRY, list[PAST], from)
      out[#out + 1], out[#out + 2] = slot, upto - sum
      sum = upto
    end
    for at = PAST + 1, #list do out[#out + 1] = list[at] end
    return out
  end

  -- How long after a grant nothing of it counts any more.
  local function life(width) return (SPANS + 2) * width end

  return {
    width_of = width_of, stored = stored, open = open, date = date, charge = charge, plus = plus, tell = tell,
    life = life, each = each,
    -- Whether what it had granted is lost, and may still be told.
    is_lost = function(window) return window.list[ORIGIN] > TOLD end,
    -- What was lost is known now.
    found = function(list) if list[ORIGIN] > TOLD then list[ORIGIN] = FOUND end end,
  }
end)()

