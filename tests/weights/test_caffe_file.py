"""caffemodels whose blobs or layers are wrong."""

import pathlib

from weight_files import caffe_messages, refusal


def test_caffe_blobs_that_do_not_fit(tmp_path: pathlib.Path):
    path, messages = tmp_path / "x.caffemodel", caffe_messages(packed=True)
    for dims in ([4], [2, 2], [-1], [1 << 40, 1 << 40], [0]):
        net = messages["NetParameter"](name="net")
        blob = net.layer.add(name="conv1_1").blobs.add(data=[1, 2, 3])
        blob.shape.dim.extend(dims)
        assert "conv1_1/0" in refusal(path, net.SerializeToString())
    net = messages["NetParameter"](name="net")
    for _ in range(2):
        net.layer.add(name="conv1_1").blobs.add(data=[1])
    assert "two layers are called 'conv1_1'" in refusal(path, net.SerializeToString())
