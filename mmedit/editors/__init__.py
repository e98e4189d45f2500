"""The base of all editing methods: editor, fitting, outer loss, saved editors."""
