"""An MCP server over a persistent Python session: in the image over its own guest, on the host over a sandbox."""
