-- ---- rules 4 and 5: grant a lane's heads while they may go ----------------------------------------------------------
-- What others do is constant during a visit, so it is looked up once; the inner loop only adds and compares.

local out = {}
for i = 1, #lanes do out[i] = {{}, 0, 0, 0} end

-- By k, anew at each visit.
local scratch = {}
for i = 1, 16 do scratch[i] = {} end

local function visit(lane, answer, in_turn_only, only_one)
  local far_of, tick, blocked, least, limit, contest, tat, tag, charge, offset, price, other_price,
    least_turn, turn_limit, turn_tag, opens = unpack(scratch, 1, 16)
  local class, buckets, runs, mine = lane[1], lane[3], lane[4], lane[10]
  local n = #buckets
  local rank = class == 0 and 0 or 1
  local weight = WEIGHT[class]
  for k = 1, n do
    local b = buckets[k]
    local s = state[b]
    blocked[k], least[k], limit[k], least_turn[k], turn_limit[k] = limits(lane, k)
    turn_tag[k] = mine[k] and mine[k][1] or 0
    tick[k] = s[T_UNTIL] > now and s[T_RANK] <= rank and s[T_HOLDER] ~= lane[9]
    far_of[k] = now + horizon_of(b, class)
    opens[k] = open[b] or 0
    -- Windows and slots have none: date_at() speaks for them.
    tat[k] = not other[b] and s[TAT]
    contest[k] = blocked[k] or least[k] < HUGE or least_turn[k] < HUGE
    tag[k] = class > 0 and s[TAG_AT + class] or 0
  end
  local dates = answer[1]
  local granted, known_cost, last_price, last = 0, nil, nil, 0
  local d, from, why, bind, retry, latest
  while true do
    local cost = runs[lane[11]]
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
        if any_closed and opens[k] > f then f = opens[k] end
      else
        f = date_at(buckets[k], offset[k])
      end
      if f > d then d, from = f, k end
      if k == 1 then account_date = f end
      local shut = any_closed and opens[k] > far_of[k]
      if tick[k] and not shut then
        if latest == 0 then
          local free = windows[buckets[k]] and state[buckets[k]][T_UNTIL] - ACTIVE or f - HORIZON
          bind, retry, why = k, max(now + 2 * GAP, free), TICKET
        end
      elseif f > far_of[k] then
        if f > latest then
          local b = buckets[k]
          local ahead = class == 0 and HORIZON or floor(horizon[b] / 2)
          latest, bind, retry, why = f, k, max(now + GAP, f - ahead), other[b] or DATE
          if shut and f == opens[k] then
            retry, why = max(now + GAP, min(f - ahead, now + REST)), CLOSED
          elseif why == CONCURRENCY then retry = now + (class == 0 and GAP or POLL)
          elseif why == QUOTA and windows[b].again then retry = max(now + GAP, min(f - ahead, windows[b].again)) end
        end
      elseif contest[k] and latest == 0 and why ~= TICKET
        and (in_turn_only or f > now + OUT_OF_TURN or other[buckets[k]] == CONCURRENCY)
        and (blocked[k] or tag[k] > limit[k] or turn_tag[k] > turn_limit[k]) then
        bind, retry, why = k, max(now + GAP, f - OUT_OF_TURN), IN_TURN
      end
    end
    -- Where other accounts wait too, the date will not come any nearer by waiting.
    if not why and d > now and not (from > 1 and shared[buckets[from]] and least_turn[from] < HUGE) then
      for k = 1, n do
        local b = buckets[k]
        if k == 1 or shared[b] then
          -- What the bucket could give at once counts: a slow destination must not eat its burst, date by date.
          local base = max(tat[k] + offset[k], now, any_closed and opens[k] or 0)
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
      if mine[k] then turn_tag[k] = turn_tag[k] + step(lane, k, price[k]) end
    end
    last_price = price
    if d > last then last = d end
    granted = granted + 1
    dates[#dates + 1] = d - now
    lane[12] = lane[12] - 1
    if lane[12] == 0 then
      lane[11] = lane[11] + 2
      lane[12] = runs[lane[11] + 1]
    end
    if only_one then break end
  end

  if granted > 0 then
    for k = 1, n do
      local b = buckets[k]
      local s = state[b]
      dirty[b] = true
      if tat[k] then s[TAT], s[LAST] = tat[k], max(s[LAST], last) end
      if weight then
        -- Tags only grow, so the last grant's is the largest that the bucket's clock may take.
        s[V] = max(s[V], min(tag[k] - last_price[k] * weight, least[k]))
        s[TAG_AT + class] = tag[k]
      end
      if mine[k] then
        local entries = turns[b][class]
        entries[1] = max(entries[1], min(turn_tag[k] - step(lane, k, last_price[k]), least_turn[k]))
        mine[k][1] = turn_tag[k]
      end
      -- Nobody else may go while critical mail waits for a slot: not for longer than it does.
      if class == 0 and other[b] == CONCURRENCY then s[ACTIVE_AT] = 0 end
      if s[T_HOLDER] == lane[9] then s[T_UNTIL], s[T_RANK], s[T_HOLDER] = 0, 0, '' end
    end
    lane[5], lane[7] = 0, lane[7] + granted
    lane[9] = lane[6] .. ':' .. lane[7]
  end
  if why then
    answer[2], answer[3], answer[4] = retry, buckets[bind], why
  else
    answer[2], answer[3], answer[4] = 0, 0, 0
  end
  return granted > 0
end

