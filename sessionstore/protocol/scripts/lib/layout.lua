-- The layout of an environment's head, leases and messages. A head of another layout belongs to another release of this
-- library, which names or means things differently: CHANGELOG.md has the steps of an upgrade.
local LAYOUT = '2'

-- `rev` and `layout` are fields of the head. Releases before layout 2 wrote none.
local function check_layout(rev, layout)
  if rev and layout ~= LAYOUT then
    error('SSLAYOUT ' .. (layout or '1'))
  end
end
