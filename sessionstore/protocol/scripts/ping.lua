-- Whether scripts run, and what time it is.
--
-- Returns {"now": ms}

--@include lib/clock

return '{"now":' .. int(now_ms()) .. '}'
