"""The checker of the guarantee, in the manner of etcd's robustness tests.

Writers, gateways and views run as processes of their own on a real Redis, while faults happen to all of them. Each
process records what it asked and what it was answered, with times of the one monotonic clock of the machine;
afterwards, validators look for what must not be in the merged history.

- `history`: the records, and how they are written and read
- `validators`: what must hold, each a pure function of the history
- `writer`, `viewer`: the processes that record
- `plan`: which faults happen when, drawn from a seed
- `world`: the processes, and the faults done to them
- `run`: one run from the seed to the report; ``python -m tests.faults.checker --help`` does many
"""
