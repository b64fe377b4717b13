-- Redis time, and numbers as text. A command's argument should be text: Redis prints a number with up to 17 digits, which
-- takes as long as a cheap command.

-- A Lua number prints with 14 digits by default; milliseconds since 1970 and revisions need them all. '%d' takes them
-- as 64 bits, in half the time of '%.0f'.
local function int(n)
  return string.format('%d', n)
end

-- The whole number in a field, or nil if the field holds something else: 'inf' and 'nan' are numbers to Lua.
local function whole(text)
  local n = tonumber(text or nil)
  return n and n >= 0 and n <= 9007199254740992 and n % 1 == 0 and n or nil
end

-- The whole number in a field that is missing where it is 0.
local function whole_or_0(text)
  if not text then
    return 0
  end
  return whole(text)
end

-- Milliseconds since 1970 by this server's clock; the same for the whole run of one script.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
