-- A batch of ledger operations, one key each, in order. The meaning of each is the table in src/ledger.rs.
-- What nearly every message needs comes here only where a plain SET did not do (redis/op.rs).
--
-- KEYS[i] the entry of operation i.
-- ARGV[1] msgpack {operation, ...}
--   claim    {1, attempt, digest, token, hold in us, owner}
--   record   {2, attempt, state, note, digest}
--   release  {3, attempt, token}
-- ARGV[2] how long an entry lives, in ms
-- reply    msgpack, one for each operation that did not go the usual way: {i, code, number, state, note}
--          The usual way is a claim granted, a result recorded, a claim released.
--          code 1 granted, 2 held (number: until), 3 expired (lost claims), 4 done (attempt, state, note), 5 conflict

local ATTEMPT, STATE, DIGEST, LOST, NOTE, TOKEN, UNTIL = 1, 2, 3, 4, 5, 6, 7
local CLAIMED, RELEASED, SENT, RETRY = 0, 1, 2, 3
local GRANTED, HELD, EXPIRED, DONE, CONFLICT = 1, 2, 3, 4, 5

local operations, life = cmsgpack.unpack(ARGV[1]), ARGV[2]
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])

local function save(key, entry)
  -- A result needs neither token nor deadline; while claimed, the note is the owner.
  if entry[STATE] ~= CLAIMED then entry[TOKEN], entry[UNTIL] = nil, nil end
  redis.call('SET', key, cmsgpack.pack(entry), 'PX', life)
end

-- Messages that were sent in one call have one record, {[key] = note}, by the token that their claims share.
local function told(key, entry)
  if entry[STATE] ~= CLAIMED then return entry end
  local record = redis.call('GET', key:match('^{[^}]*}') .. ':call:' .. string.format('%.0f', entry[TOKEN]))
  local note = record and cmsgpack.unpack(record)[key]
  if not note then return entry end
  return {entry[ATTEMPT], SENT, entry[DIGEST], entry[LOST], note}
end

local function claim(key, entry, attempt, digest, token, hold, owner)
  local function take(code, first, lost)
    save(key, {attempt, CLAIMED, first, lost, owner, token, now + hold})
    return {code, lost, 0, ''}
  end
  if not entry then return take(GRANTED, attempt == 1 and digest or -1, 0) end
  entry = told(key, entry)
  local stored, state, first = entry[ATTEMPT], entry[STATE], entry[DIGEST]
  if attempt == 1 and first >= 0 and first ~= digest then return {CONFLICT, 0, 0, ''} end
  if attempt == 1 and first < 0 then first = digest end
  -- What went out went out, whichever attempt it was.
  if state == SENT then return {DONE, stored, SENT, entry[NOTE]} end
  if stored > attempt then
    if state <= RELEASED then return {DONE, stored, RETRY, ''} end
    return {DONE, stored, state, entry[NOTE]}
  end
  if stored < attempt or state == RELEASED then return take(GRANTED, first, entry[LOST]) end
  if state ~= CLAIMED then return {DONE, stored, state, entry[NOTE]} end
  if entry[TOKEN] == token then return {GRANTED, entry[LOST], 0, ''} end
  if entry[UNTIL] > now then return {HELD, entry[UNTIL], 0, ''} end
  return take(EXPIRED, first, entry[LOST] + 1)
end

local function record(key, entry, attempt, state, note, digest)
  if state == SENT and attempt == 1 then entry = {1, SENT, digest, 0, note} -- final, whatever is stored
  elseif not entry then entry = {attempt, state, -1, 0, note}
  elseif entry[ATTEMPT] > attempt then return
  elseif entry[ATTEMPT] == attempt and entry[STATE] == SENT then return
  else entry[ATTEMPT], entry[STATE], entry[NOTE] = attempt, state, note end
  save(key, entry)
end

local function release(key, entry, attempt, token)
  if entry and entry[ATTEMPT] == attempt and entry[STATE] == CLAIMED and entry[TOKEN] == token then
    entry[STATE], entry[NOTE] = RELEASED, ''
    save(key, entry)
  end
end

local replies = {}
for i = 1, #operations do
  local o, key = operations[i], KEYS[i]
  local raw = redis.call('GET', key)
  local entry = raw and cmsgpack.unpack(raw)
  if o[1] == 1 then
    local answer = claim(key, entry, o[2], o[3], o[4], o[5], o[6])
    if answer[1] ~= GRANTED then replies[#replies + 1] = {i, answer[1], answer[2], answer[3], answer[4]} end
  elseif o[1] == 2 then
    record(key, entry, o[2], o[3], o[4], o[5])
  else
    release(key, entry, o[2], o[3])
  end
end
return cmsgpack.pack(replies)
