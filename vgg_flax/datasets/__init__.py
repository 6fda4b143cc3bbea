"""Sources of labelled images: our own TFDS builder, tfrecord files, plain folders."""
