"""The asynchronous official client goes the same way."""

import asyncio

from e2b_code_interpreter import AsyncSandbox


def test_the_async_client_runs_code_commands_and_files_side_by_side() -> None:
    async def scenario() -> tuple[str | None, str, str]:
        sandbox = await AsyncSandbox.create(timeout=60)
        try:
            await sandbox.files.write("/tmp/async", "text")
            async with asyncio.TaskGroup() as tasks:
                code = tasks.create_task(sandbox.run_code("6 * 7"))
                command = tasks.create_task(sandbox.commands.run("echo side by side"))
                content = tasks.create_task(sandbox.files.read("/tmp/async"))
            return code.result().text, command.result().stdout, content.result()
        finally:
            await sandbox.kill()

    assert asyncio.run(scenario()) == ("42", "side by side\n", "text")


def test_an_async_watcher_streams_events() -> None:
    async def scenario() -> str:
        sandbox = await AsyncSandbox.create(timeout=60)
        try:
            first: asyncio.Future[str] = asyncio.get_running_loop().create_future()

            def note(event: object) -> None:
                if not first.done():
                    first.set_result(str(getattr(event, "name", "")))

            watcher = await sandbox.files.watch_dir("/home/user", on_event=note)
            await sandbox.files.write("/home/user/seen.txt", "x")
            async with asyncio.timeout(10):
                name = await first
            await watcher.stop()
            return name
        finally:
            await sandbox.kill()

    assert asyncio.run(scenario()) == "seen.txt"
