-- Bytes of 200 ids of 128 characters, as an array.
local MAX_ID_ARRAY_BYTES = 26201

-- Whether the text is a JSON array of ids, without spaces: it is copied into messages as it is.
local function is_id_array(text)
  -- Nothing but the last bracket may remain, and only the first id may follow a bracket.
  return text == '[]' or #text <= MAX_ID_ARRAY_BYTES and string.gsub(text, '[%[,]"[%w_%-]+"', '') == ']'
    and string.sub(text, -1) == ']' and string.sub(text, 1, 1) == '[' and not string.find(text, '[', 2, true)
end
