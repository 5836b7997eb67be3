-- What is in force at a bucket, whoever asks; the same steps as rules/said.rs.

-- By bucket: how it is not as configured, {since, closed until}; until when it is closed, where it is.
local changes, open, any_closed = {}, {}, false
for at = 1, #request[9], 3 do
  changes[request[9][at]] = {request[9][at + 1], request[9][at + 2]}
end
local generation = request[8]
local newest = tonumber(values[2] or '0') or 0

-- Takes what this ask says of a bucket, {x, y, z} of it included; returns what holds, and whether that is worth keeping.
local function hear(b, s, x, y, z)
  local change = changes[b]
  -- Most of the time there is nothing to be said.
  if not change and s[LAPSES] == 0 and generation == s[GEN] and (newest == 0 or generation <= newest) then
    if generation == 0 then return x, y, z, false end
    return s[SAID + 1], s[SAID + 2], s[SAID + 3], false
  end
  local news, since, till, own = false, 0, 0, false
  if newest > 0 and s[GEN] > newest then s[GEN], s[SINCE] = 0, 0 end
  if s[LAPSES] <= now then
    if s[SINCE] > 0 then s[GEN] = max(s[GEN] - 1, 0) end
    s[SINCE], s[SHUT_SINCE], s[SHUT_UNTIL], s[LAPSES] = 0, 0, 0, 0
  end
  if change then since, till, own = change[1], change[2], change[1] == 0 end
  if since > 0 then
    if since > s[SHUT_SINCE] or (since == s[SHUT_SINCE] and till > s[SHUT_UNTIL]) then
      s[SHUT_SINCE], news = since, true
      -- Who closes nothing opens nothing.
      if till > 0 then s[SHUT_UNTIL] = till end
    end
    if since == s[SHUT_SINCE] and s[LAPSES] < now + STAND / 2 then s[LAPSES], news = now + STAND, true end
  end
  if s[SHUT_UNTIL] > now then open[b], any_closed = s[SHUT_UNTIL], true end
  if generation == 0 or own or (newest > 0 and generation > newest and s[GEN] == 0) then return x, y, z, news end
  if (newest == 0 or generation <= newest) and (generation > s[GEN] or (generation == s[GEN] and since > s[SINCE])) then
    s[GEN], s[SINCE], s[SAID + 1], s[SAID + 2], s[SAID + 3] = generation, since, x, y, z
    return x, y, z, true
  end
  return s[SAID + 1], s[SAID + 2], s[SAID + 3], news
end
