"""The four steps from prompt to ranked wave as plain classes, batch -> batch, that have never heard of Ray."""
