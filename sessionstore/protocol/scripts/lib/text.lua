-- Text that an answer may hold. One invalid byte would spoil the whole answer, so what is not UTF-8 is left out of it.

-- Whether the text may name a project or an environment.
local function is_slug(text)
  return #text <= 64 and string.find(text, '^%w[%w._-]*$') ~= nil
end

local function is_utf8(text)
  if not string.find(text, '[\128-\255]') then
    return true
  end
  local UTF8_SEQUENCES = {
    '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
    '\237[\128-\159][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
    '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
  }
  for _, sequence in ipairs(UTF8_SEQUENCES) do
    text = string.gsub(text, sequence, ' ')
  end
  return not string.find(text, '[\128-\255]')
end
