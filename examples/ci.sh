#!/usr/bin/env bash
# ci.sh COMMAND…: run tests with a session of their own. RUN is the number of the CI run, KEY a secret.
set -euo pipefail
session="http://localhost:8080/api/v1/sessions/ci-$RUN?project=checkout&environment=staging"
call=(curl -sS -w '\n' --fail-with-body --retry 3 -H "Authorization: Bearer $KEY" -H "Content-Type: application/json")

trap '"${call[@]}" -X DELETE "$session&mode=delete"' EXIT  # also when the tests fail
# views=1: fail without a live proxy
"${call[@]}" -X PUT "$session&views=1" -d '{"scenario": "scn_paymentDeclined", "overrides": ["ovr_slowSearch"]}'
"$@"  # every live proxy already serves this session
