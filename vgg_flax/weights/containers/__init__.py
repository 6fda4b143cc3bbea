"""Containers: a reader for each of five formats; none of them knows of VGG."""
