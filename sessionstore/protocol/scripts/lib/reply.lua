-- The answer of every script that wrote a session: one JSON object.

-- `target_rev` is the revision that the caller has to wait for; `live` and `pending` count the leases that live now and
-- those of them that have not applied it. `epoch` tells later whether Redis was emptied, restarted or replaced since.
local function written(now, head, target_rev, live, pending, changed, existed, body)
  return string.format(
    '{"status":"ok","now":%d,"rev":%d,"targetRev":%d,"live":%d,"pending":%d,"expired":%d,"countableInMs":%d,'
      .. '"epoch":%s,"changed":%s,"existed":%s,"session":%s}',
    now, head.rev, target_rev, live, pending, head.expired, math.max(0, head.countableAt - now),
    cjson.encode(head.epoch), changed and 'true' or 'false', existed and 'true' or 'false', body or 'null')
end
