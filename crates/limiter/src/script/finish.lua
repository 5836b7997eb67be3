-- ---- rules 2 and 6: order, sweeps ------------------------------------------------------------------------------------

local order, class_key, turn_key = {}, {}, {}
for i = 1, #lanes do
  local lane = lanes[i]
  order[i] = i
  class_key[i] = lane[1] == 0 and -1 or state[lane[3][1]][TAG_AT + lane[1]]
  turn_key[i] = lane[10][1][1]
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
      done[i] = answer[4] == DATE or answer[4] >= QUOTA or (answer[4] == 0 and not lane[4][lane[11]])
    end
  end
  if any then in_turn_only = true
  elseif in_turn_only then in_turn_only = false
  else break end
end

-- ---- rule 7: what those left waiting leave behind -----------------------------------------------------------------------

for i = 1, #lanes do
  local lane, answer = lanes[i], out[i]
  local cost = lane[4][lane[11]]
  -- Where it is closed nobody takes turns.
  if cost and answer[4] ~= CLOSED then
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
      local turn = lane[10][k]
      if lane[3][k] == b and turn and till > turn[2] + MARK_STEP then
        turn[2] = till
        dirty[b] = true
      end
    end
    if rank == 0 or (lane[5] > 0 and now - lane[5] >= PATIENCE) then
      for k = 1, #lane[3] do
        local q = lane[3][k]
        local t = state[q]
        local take = t[T_HOLDER] == lane[9]
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
            take = not blocked and tag <= limit and (lane[10][k] and lane[10][k][1] or 0) <= turn_limit
          end
        end
        if take then
          t[T_UNTIL], t[T_RANK], t[T_HOLDER] = till, rank, lane[9]
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
    if s[SHUT_SINCE] > 0 then left = max(left, s[LAPSES] - now) end
    if s[LAST] <= now then s[LAST] = 0 end
    s[EXPIRES] = now + left + KEEP
    -- The server forgets a little later than the arithmetic does.
    redis.call('SET', KEYS[b + 2], cmsgpack.pack(s), 'PX', string.format('%.0f', floor((left + KEEP) / 1000) + 1000))
  end
end

for i = 1, #lanes do
  local answer = out[i]
  if answer[4] ~= 0 then answer[2] = answer[2] - now end
end
return cmsgpack.pack({now, epoch, past == '!' and 1 or 0, out})
