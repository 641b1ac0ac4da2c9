"""An MCP server over a persistent Python session."""
