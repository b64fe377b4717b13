-- The answer of every script that wrote a session: one JSON object.

-- `target_rev` is the revision that the caller has to wait for; `live` and `pending` count the leases that live now and
-- those of them that have not applied it. `epoch` tells later whether Redis was emptied, restarted or replaced since.
local function written(now, head, target_rev, live, pending, changed, existed, body)
  return '{"status":"ok","now":' .. int(now) .. ',"rev":' .. int(head.rev) .. ',"targetRev":' .. int(target_rev)
    .. ',"live":' .. int(live) .. ',"pending":' .. int(pending) .. ',"expired":' .. int(head.expired)
    .. ',"countableInMs":' .. int(math.max(0, head.countableAt - now)) .. ',"epoch":' .. cjson.encode(head.epoch)
    .. ',"changed":' .. (changed and 'true' or 'false') .. ',"existed":' .. (existed and 'true' or 'false')
    .. ',"session":' .. (body or 'null') .. '}'
end
