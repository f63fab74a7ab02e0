"""Features by many workers: Ray, and caches in object stores."""
