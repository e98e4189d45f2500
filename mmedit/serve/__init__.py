"""An HTTP server in OpenAI's form that answers under many edits of one VLM at once."""
