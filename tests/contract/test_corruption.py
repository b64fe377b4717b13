"""What a store promises when Redis holds damaged records: each is an error or is left out, and harms nothing else."""

from __future__ import annotations

import json

import pytest

from sessionstore import AsyncEnvironment, CorruptDataError

from ..support.adapter import Backend

#: Valid JSON, nested deeper than a decoder goes.
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


class TestDeepRecord:
    async def test_of_a_catalog_is_corrupt(self, backend: Backend, staging: AsyncEnvironment) -> None:
        backend.raw.hset(f"{backend.prefix}:{{checkout}}:staging:catalog", mapping={"digest": "x", "json": DEEP})

        for call in (staging.catalog, staging.scenarios):
            with pytest.raises(CorruptDataError, match="recursion"):
                await call()

    async def test_of_a_view_hides_its_host_only(self, backend: Backend, staging: AsyncEnvironment) -> None:
        async with staging.view():
            [lease] = backend.raw.zrange(f"{backend.prefix}:{{checkout}}:staging:leases", 0, -1)
            lease = lease if isinstance(lease, str) else lease.decode()
            info = json.dumps({"host": "here", "pid": 1, "version": "1", "more": 0}).replace("0}", DEEP + "}")
            backend.raw.hset(f"{backend.prefix}:{{checkout}}:staging:views", lease, info)

            [view] = await staging.views()

        assert (view.id, view.host, view.pid) == (lease, "", 0)
