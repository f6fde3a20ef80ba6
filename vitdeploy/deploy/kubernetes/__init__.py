"""A bundle on Kubernetes: `folder` writes what an image is built of and `manifests` says what runs it."""
