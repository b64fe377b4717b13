-- If-Match and If-None-Match. `if_match` is '', '*' or revisions between commas (',7,9,'); `if_none_match` is '' or
-- '*'.
local function precondition_holds(session, if_match, if_none_match)
  if if_none_match == '*' and session then
    return false
  end
  if if_match == '' then
    return true
  end
  if not session then
    return false
  end
  return if_match == '*' or string.find(if_match, ',' .. int(session.rev) .. ',', 1, true) ~= nil
end
