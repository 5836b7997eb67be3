-- What windows have granted, slot by slot; nothing is changed. After windows.lua.
-- KEYS the windows, ARGV the length of each. Reply msgpack {now, {{slot, cost, ...}, ...}}
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
-- As in limiter.lua.
local INTERVAL, EXPIRES, MORE = 1, 3, 15
local values, out = redis.call('MGET', unpack(KEYS)), {}
for i = 1, #KEYS do
  out[i] = {}
  if values[i] then
    local ok, s = pcall(cmsgpack.unpack, values[i])
    if ok and type(s) == 'table' and s[INTERVAL] == -tonumber(ARGV[i]) and s[EXPIRES] > now then
      out[i] = Windows.each(s[MORE])
    end
  end
end
return cmsgpack.pack({now, out})
