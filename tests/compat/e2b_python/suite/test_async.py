"""The asynchronous official client goes the same way."""

import asyncio

from e2b_code_interpreter import AsyncSandbox, Sandbox


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


STREAMS = 200


def test_200_streams_of_one_sandbox_all_get_their_ticks(own_sandbox: Sandbox) -> None:
    async def scenario() -> list[dict[int, str]]:
        sandbox = await AsyncSandbox.connect(own_sandbox.sandbox_id)
        heard: dict[int, str] = {}
        complete = asyncio.Event()

        async def open_one(number: int) -> int:
            def hear(text: str) -> None:
                heard[number] = text
                if len(heard) == STREAMS:
                    complete.set()

            handle = await sandbox.commands.run(
                "cat", background=True, stdin=True, timeout=100, on_stdout=hear
            )
            return handle.pid

        def tick(pids: list[int], line: str) -> None:
            # By the other client: 200 is all the connections that one has, and its streams are holding them.
            for pid in pids:
                own_sandbox.commands.send_stdin(pid, line)

        async with asyncio.TaskGroup() as tasks:
            opened = [tasks.create_task(open_one(number)) for number in range(STREAMS)]
        rounds: list[dict[int, str]] = []
        for line in ("one\n", "two\n"):
            async with asyncio.timeout(60):
                await asyncio.to_thread(tick, [task.result() for task in opened], line)
                await complete.wait()
            rounds.append(dict(heard))
            heard.clear()
            complete.clear()
        return rounds

    first, second = asyncio.run(scenario())
    assert first == dict.fromkeys(range(STREAMS), "one\n")
    assert second == dict.fromkeys(range(STREAMS), "two\n")
