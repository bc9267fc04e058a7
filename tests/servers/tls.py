"""TLS in front of a plain HTTP server, as a cluster's ingress does it, with a certificate of a private authority."""

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
    """(https address of the server, certificate file of the authority)."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    port = urlsplit(address).port

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_forward(reader, server_writer), _forward(server_reader, writer))

    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, daemon=True).start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context), loop).result()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", folder / "authority.pem"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)


async def _forward(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError):  # a broken connection ends the other side too, by close()
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()
