"""The subcommands of `vgg-flax`: a file each adds its options and runs it."""
