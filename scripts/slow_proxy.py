#!/usr/bin/env python3
"""Forwards a port and holds back every byte for a while, as a server far away would.

    scripts/slow_proxy.py LISTEN_PORT TARGET_PORT MILLISECONDS
"""

import asyncio
import sys


async def forward(reader, writer, delay):
    """Each piece is written when its time has come; several may be under way."""
    pieces = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def write():
        while (piece := await pieces.get()) is not None:
            due, data = piece
            await asyncio.sleep(max(0.0, due - loop.time()))
            writer.write(data)
            await writer.drain()
        writer.close()

    writing = asyncio.create_task(write())
    try:
        while data := await reader.read(1 << 16):
            pieces.put_nowait((loop.time() + delay, data))
    except ConnectionError:
        pass
    pieces.put_nowait(None)
    try:
        await writing
    except ConnectionError:
        pass


async def main():
    listen, target, milliseconds = map(int, sys.argv[1:4])
    # Half on the way there, half on the way back.
    delay = milliseconds / 2000

    async def serve(reader, writer):
        there = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(forward(reader, there[1], delay), forward(there[0], writer, delay))

    server = await asyncio.start_server(serve, "127.0.0.1", listen)
    await server.serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main())
