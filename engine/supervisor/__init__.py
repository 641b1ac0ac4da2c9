"""The loop of a run, and what it needs: prompts, conversation, code blocks, transcript."""
