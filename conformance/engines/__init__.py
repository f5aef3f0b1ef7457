"""The life-cycle checklist on dockerd, containerd and podman."""
