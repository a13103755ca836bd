"""The client, written once for asyncio and trio; `cloche._sync` is generated from it."""
