"""The checker of the guarantee, in the manner of etcd's robustness tests.

Writers, gateways and views run as processes on a real Redis, while faults hit all of them. Each process records its
calls and their answers, with times of the machine's monotonic clock. Afterwards, validators search the merged history
for violations.

- `history`: the records, and how they are written and read
- `validators`: what must hold, each a pure function of the history
- `writer`, `viewer`: the processes that record
- `plan`: the faults and their times, drawn from a seed
- `world`: starts the processes and causes the faults
- `run`: one run, from the seed to the report; ``python -m tests.faults.checker --help`` shows how to start many
"""
