"""A vision-language model as a value: a frozen network, its adapter, and the edits it carries.

Axes in all public signatures: `batch` rows of a call; `text` prompt and answer tokens after the
image; `sequence` tokens as the network sees them (image placeholders, context, text, padding);
`vocab`; `in`, `out` widths of a Linear; `edits` separate edits, one per row; `rank` of a low-rank
delta.
"""
