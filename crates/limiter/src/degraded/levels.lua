-- What windows have granted, slot by slot; nothing is changed. After windows.lua.
-- KEYS the windows and the members of the fleet, ARGV the length of each window.
-- Reply msgpack {now, since when the fleet's state is, {{slot, cost, ...}, ...}, {limit that workers said, or 0, ...}}
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
-- As in limiter.lua.
local INTERVAL, EXPIRES, MORE, GEN, LIMIT = 1, 3, 15, 16, 19
local since = redis.call('HGET', KEYS[#KEYS], '@since')
local values, out, limits = redis.call('MGET', unpack(KEYS, 1, #KEYS - 1)), {}, {}
for i = 1, #KEYS - 1 do
  out[i], limits[i] = {}, 0
  if values[i] then
    local ok, s = pcall(cmsgpack.unpack, values[i])
    if ok and type(s) == 'table' and s[INTERVAL] == -tonumber(ARGV[i]) and s[EXPIRES] > now then
      out[i] = Windows.each(Windows.open(s[MORE], Windows.width_of(tonumber(ARGV[i])), 0, now).list)
      if s[GEN] and s[GEN] > 0 then limits[i] = s[LIMIT] end
    end
  end
end
return cmsgpack.pack({now, tonumber(since) or 0, out, limits})
