"""A bundle in a browser: `site` writes a page with what it runs, `serve` is the small server that goes with it."""
