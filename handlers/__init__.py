"""Model handlers: their interface, and those that ship."""

from __future__ import annotations

from .anthropic import AnthropicHandler
from .base import (
    BatchItem,
    Completion,
    FinishReason,
    Message,
    ModelHandler,
    OnlyToolCall,
    Price,
    Role,
    Usage,
    all_or_none,
    call_chat,
    call_chat_batch,
    call_chat_stream,
)
from .builtin import BuiltinSupervisor, BuiltinWorker
from .errors import ContextTooLong, HandlerError, NoAccess, Rejected, Unavailable, Unreachable
from .gemini import GeminiHandler
from .openai import OpenAIHandler
from .retries import Retry, RetryReason, report_retry
from .scripted import ScriptedHandler
from .vllm import VLLMHandler

__all__ = [
    "AnthropicHandler",
    "BatchItem",
    "BuiltinSupervisor",
    "BuiltinWorker",
    "Completion",
    "ContextTooLong",
    "FinishReason",
    "GeminiHandler",
    "HandlerError",
    "Message",
    "ModelHandler",
    "NoAccess",
    "OnlyToolCall",
    "OpenAIHandler",
    "Price",
    "Rejected",
    "Retry",
    "RetryReason",
    "Role",
    "ScriptedHandler",
    "Unavailable",
    "Unreachable",
    "Usage",
    "VLLMHandler",
    "all_or_none",
    "call_chat",
    "call_chat_batch",
    "call_chat_stream",
    "report_retry",
]
