-- Scripts run inside Redis, whose Lua is 5.1 with a few globals of its own; what make check looks at is each script whole,
-- with its fragments put in.
std = "lua51"
read_globals = { "redis", "cjson", "KEYS", "ARGV" }
-- A script uses only some functions of a fragment.
ignore = { "211", "212" }
max_line_length = 200
