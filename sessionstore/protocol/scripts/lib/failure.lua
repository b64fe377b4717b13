-- What a script answers that changed nothing: why, and what it is about.
local function failure(status, detail)
  return '{"status":"' .. status .. '","detail":' .. cjson.encode(detail) .. '}'
end
