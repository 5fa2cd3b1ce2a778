"""The field's own formats, read into model folders and written from them: one file per format, one explicit step."""
