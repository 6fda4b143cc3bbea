"""Bytes -> pixels: decoding, resizing, preprocessing, augmentation."""
