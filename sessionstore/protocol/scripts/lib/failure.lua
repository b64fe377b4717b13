-- The answer of a script that changed nothing: the reason, and what it refers to.
local function failure(status, detail)
  return '{"status":"' .. status .. '","detail":' .. cjson.encode(detail) .. '}'
end
