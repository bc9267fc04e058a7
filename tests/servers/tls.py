"""TLS in front of a server that speaks none, as a cluster's ingress does, with a certificate of an own authority."""

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import trustme


@contextmanager
def behind_tls(address: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """(https address of the same server, the certificate of who vouches for it)."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    port = urlsplit(address).port

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, server_writer), _pass_on(server_reader, writer))

    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, daemon=True).start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context), loop).result()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", folder / "authority.pem"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError):  # who breaks off is told to the other side
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
