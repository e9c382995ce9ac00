"""What the service's listening socket hands down to its connections."""

from __future__ import annotations

import asyncio
import socket

from app.listening import listen


def test_no_part_of_an_answer_waits_until_the_part_before_it_is_acknowledged() -> None:
    async def at_once() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection: socket.socket = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_server(take, sock=listen("127.0.0.1", 0)) as server:
            _, caller = await asyncio.open_connection(*server.sockets[0].getsockname())
            caller.close()
            await caller.wait_closed()
            return await found

    assert asyncio.run(at_once())
