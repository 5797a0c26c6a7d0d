"""The board: runs as they train, in a web browser. `library` reads them, `payloads` shapes, `server` serves."""
