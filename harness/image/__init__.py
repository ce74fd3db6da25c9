"""The images that guests boot from: manifests, the cache, import and preparation."""
