"""The playground: a page in the browser to ask a VLM, edit it, and see what else changed."""
