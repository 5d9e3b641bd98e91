"""An MCP server over stdio or, with a port, over HTTP. It needs the package `mcp` and nothing of ours."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server import MCPServer

server = MCPServer("weather", log_level="CRITICAL")


@server.tool()
def weather(city: str, days: int = 1) -> str:
    """Tell the weather of a city."""
    if city == "Atlantis":
        raise ValueError("no such city")
    return f"sunny in {city} for {days} days"


@server.tool()
def surroundings() -> list[str]:
    """List the names of the environment."""
    return [f"pid={os.getpid()}", *sorted(os.environ)]


@server.tool()
async def forever() -> str:
    """Wait for ever."""
    await asyncio.Event().wait()
    return "never"


@server.tool()
def die() -> str:
    """End the server at once."""
    os._exit(7)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
