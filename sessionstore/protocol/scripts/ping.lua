-- Whether scripts run, and Redis's time.
--
-- Returns {"now": ms}

--@include lib/clock

return '{"now":' .. int(now_ms()) .. '}'
