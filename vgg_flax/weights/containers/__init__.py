"""Weight files of five formats -> {name: array}; they know nothing of VGG."""
